"""`python scripts/train.py --config configs/quickstart.yaml`: the same as `lora-hf train`."""

import sys

from lora_hf.cli import main

main(["train", *sys.argv[1:]])
