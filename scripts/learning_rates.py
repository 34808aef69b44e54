"""Choose each arm's learning rate on the validation split, from one grid given to both.

python scripts/learning_rates.py --config configs/quickstart.yaml --rates 1e-3 3e-3 1e-2 --output runs/rates
"""

import argparse
from pathlib import Path

from lora_hf.runs.grid import grid_markdown, learning_rate_grid

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", required=True)
parser.add_argument("--rates", type=float, nargs="+", required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE")
arguments = parser.parse_args()
print(
    grid_markdown(
        learning_rate_grid(arguments.config, arguments.rates, arguments.output, arguments.overrides)
    )
)
