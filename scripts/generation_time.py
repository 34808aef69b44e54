"""What each method adds to the time of generation, side by side in one process, as a Markdown table.

python scripts/generation_time.py --config configs/methods.yaml --variants lora bottleneck prompt_tuning
"""

import argparse
import sys

from lora_hf.config.file import load_config
from lora_hf.status import exit_status

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", required=True)
parser.add_argument(
    "--variants",
    nargs="+",
    default=("lora", "bottleneck", "prompt_tuning"),
    help="variants of the config; a lora also merged",
)
parser.add_argument("--new-tokens", type=int, default=32)
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE")
arguments = parser.parse_args()


def main() -> None:
    config = load_config(arguments.config, arguments.overrides, is_study=True)
    from lora_hf.runs.generation_time import generation_markdown, generation_times  # it takes seconds

    times = generation_times(config, arguments.variants, arguments.new_tokens, arguments.rounds)
    print(generation_markdown(times), end="")


sys.exit(exit_status(main))
