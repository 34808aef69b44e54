"""Our training step and PEFT's with Seq2SeqTrainer, in turn, on one machine: ratios, not times.

    python scripts/bench.py --tokenizer ../shared/data/t5_tokenizer --data ../shared/data/dialogsum

Each side is a process that makes one step when it is its turn. Both go through the same dialogues twice; the
first time warms up. Without `--data` and `--tokenizer` it is the package's own sample, of short dialogues. A
FLAN-T5 of random weights: speed and memory, never quality. Writes bench.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lora_hf.files import write_json

MARK = "bench "
HERE = Path(__file__).parent
RESAMPLES = 2000


class Side:
    """A worker, and the steps it has made."""

    def __init__(self, name: str, options: list[str]) -> None:
        command = [sys.executable, str(HERE / "benchmark" / "worker.py"), name, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.steps: list[dict[str, Any]] = []
        self._read("ready")

    def step(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.steps.append(self._read("seconds"))

    def _read(self, key: str) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(MARK):
                record: dict[str, Any] = json.loads(line.removeprefix(MARK))
                assert key in record, record
                return record
        raise RuntimeError(f"a worker ended with status {self.process.wait()}")

    def seconds(self, steps: int) -> np.ndarray:
        """Of the last steps: the second time through the dialogues."""
        return np.array([step["seconds"] for step in self.steps[-steps:]])


def in_turn(names: list[str], options: list[str], rounds: int) -> dict[str, Side]:
    """Every side's steps, one after the other; each round begins with the next side."""
    sides = {name: Side(name, options) for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sides[name].step()
    for side in sides.values():
        side.process.communicate()
    return sides


def ratio(theirs: np.ndarray, ours: np.ndarray) -> list[float]:
    """Their time over ours for the same dialogues, and percentiles 5 and 95 by bootstrap over pairs."""
    rows = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    spread = np.percentile(theirs[rows].sum(1) / ours[rows].sum(1), (5, 95))
    return [round(float(x), 3) for x in (theirs.sum() / ours.sum(), *spread)]


def train_ratios(options: list[str], steps: int) -> dict[str, Any]:
    sides = in_turn(["ours", "peer", "peer_best"], options, 2 * steps)
    ours, peer, best = (sides[name] for name in ("ours", "peer", "peer_best"))
    same = in_turn(["ours", "peer"], [*options, "--no-dropout", "--epochs", "1"], steps)
    losses = [np.array([step["loss"] for step in side.steps]) for side in same.values()]
    return {
        "ratio_default": ratio(peer.seconds(steps), ours.seconds(steps)),
        "ratio_best": ratio(best.seconds(steps), ours.seconds(steps)),
        "memory_ratio": round(ours.steps[-1]["mib"] / peer.steps[-1]["mib"], 3),
        "mib": {name: round(side.steps[-1]["mib"]) for name, side in sides.items()},
        "losses_apart": round(float(np.abs(losses[0] - losses[1]).max()), 4),
        "losses": [round(float(x[-1]), 4) for x in losses],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="small")
    parser.add_argument("--tokenizer", default="lora_hf/assets/tiny_t5")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--steps", type=int, default=12, help="batches of 8; pairs that are compared")
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    given = parser.parse_args()
    options = [f"--{name}={getattr(given, name)}" for name in ("shape", "tokenizer", "data", "steps")]
    from lora_hf.runs.arm import versions

    record = {"versions": versions(), "train": train_ratios(options, given.steps)}
    write_json(given.output, record)
    print(json.dumps(record["train"], indent=2))


if __name__ == "__main__":
    main()
