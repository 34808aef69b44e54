"""Save a FLAN-T5 of a real shape with random weights, to measure speed and memory without a checkpoint.

python scripts/benchmarks/random_t5.py --shape small --tokenizer DIR --output DIR
"""

import argparse

from transformers import AutoTokenizer

from lora_hf.models.flan_t5 import SIZES, random_flan_t5

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shape", choices=SIZES, default="small")
parser.add_argument("--tokenizer", required=True, help="folder, or name on the Hub")
parser.add_argument("--output", required=True, help="folder to write")
arguments = parser.parse_args()
random_flan_t5(arguments.shape).save_pretrained(arguments.output)
AutoTokenizer.from_pretrained(arguments.tokenizer).save_pretrained(arguments.output)
