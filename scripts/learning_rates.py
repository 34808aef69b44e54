"""Choose each arm's learning rate, or each variant's, on the validation split, from one grid given to all.

python scripts/learning_rates.py --config configs/quickstart.yaml --rates 1e-3 3e-3 1e-2 --output runs/rates
python scripts/learning_rates.py --config configs/methods.yaml --rates 1e-2 1e-1 --output runs/rates \\
    --variants bottleneck prompt_tuning -- data.max_eval_samples=200
"""

import argparse
import sys
from pathlib import Path

from lora_hf.runs.grid import grid_markdown, learning_rate_grid
from lora_hf.status import exit_status

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", required=True)
parser.add_argument("--rates", type=float, nargs="+", required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--variants", nargs="+", default=(), help="of the config; else its arms full and lora")
parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE")
arguments = parser.parse_args()


def main() -> None:
    scores = learning_rate_grid(
        arguments.config, arguments.rates, arguments.output, arguments.overrides, arguments.variants
    )
    print(grid_markdown(scores))


sys.exit(exit_status(main))
