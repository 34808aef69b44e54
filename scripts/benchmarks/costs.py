"""Measure how the cost of a training step grows with length, batch, rank, loaded adapters and model size.

    make costs
    python scripts/benchmarks/costs.py --device cuda --only length batch

Each point is measured in two separate processes, lora_hf and PEFT with Seq2SeqTrainer in turn, on random
dialogues of one length. One setting varies while the others stay fixed. Writes costs.json and one figure per
setting for light and for dark pages. For the documentation, copy costs.json to docs/charts and run
scripts/tools/charts.py.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from lora_hf.files import write_json
from lora_hf.models.flan_t5 import SIZES
from scripts.benchmarks.against_peft.turns import in_turn
from scripts.benchmarks.bench import machine
from scripts.tools import charts

VARIED: dict[str, list[Any]] = {
    "length": [64, 128, 256, 512, 1024],
    "batch": [1, 2, 4, 8, 16],
    "r": [2, 8, 32, 128],
    "adapters": [1, 4, 16, 64],
    "shape": ["small", "base", "large"],
}
FIXED: dict[str, Any] = {"length": 256, "batch": 4, "r": 8, "adapters": 1, "shape": "small"}
WARM, TIMED = 2, 3


def measured(setting: str, value: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Return the median seconds of a step and the peak memory in MiB, without and with weights, of both."""
    fields = FIXED | {"shape": given.shape} | {setting: value}
    rounds = WARM + TIMED
    options = [f"--{name}={x}" for name, x in fields.items()]
    options += [
        f"--device={given.device}",
        f"--tokenizer={given.tokenizer}",
        f"--steps={rounds}",
        "--epochs=1",
    ]
    sides = in_turn("train", ["ours", "peer"], options, rounds)
    keys = ("mib", "mib_with_weights")
    return {
        name: {"seconds": float(np.median(side.of("seconds", TIMED)))} | {k: side.steps[-1][k] for k in keys}
        for name, side in sides.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=VARIED, default=list(VARIED))
    parser.add_argument("--shape", choices=["tiny", *SIZES], default=FIXED["shape"])
    parser.add_argument("--most", type=int, help="measure only the first points of each setting")
    parser.add_argument("--tokenizer", default="lora_hf/assets/tiny_t5")
    parser.add_argument("--output", type=Path, default=Path("costs"), help="folder to write to")
    given = parser.parse_args()
    record: dict[str, Any] = {
        "machine": machine(given.device),
        "fixed": FIXED | {"shape": given.shape},
        "points": {},
    }
    for setting in given.only:
        points = record["points"][setting] = []
        for value in VARIED[setting][: given.most]:
            points.append({"value": value} | measured(setting, value, given))
            print(setting, points[-1], flush=True)
            write_json(given.output / "costs.json", record)
        for scheme in charts.SCHEMES:
            chart = partial(charts.costs, record, setting)
            charts.draw(setting, scheme, chart, 2, charts.COST_SIZE, given.output)


if __name__ == "__main__":
    main()
