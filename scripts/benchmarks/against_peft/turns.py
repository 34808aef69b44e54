"""Run workers in turn: one process per library, each taking one step on request."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

MARK = "bench "
"""A worker's lines for its starter begin with this: what the Trainer prints does not."""
RESAMPLES = 2000


class Side:
    """A worker, and the steps it has made."""

    def __init__(self, job: str, name: str, options: list[str]) -> None:
        command = [sys.executable, "-m", "scripts.benchmarks.against_peft.worker", job, name, *options]
        root = Path(__file__).parents[3]
        self.process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.steps: list[dict[str, Any]] = []
        self.facts = self._read()

    def step(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.steps.append(self._read())

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(MARK):
                record: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return record
        raise SystemExit(f"error: a worker of the benchmark ended with status {self.process.wait()}")

    def of(self, key: str, steps: int) -> np.ndarray:
        """What the last steps say of `key`."""
        return np.array([step[key] for step in self.steps[-steps:]])


def say(record: dict[str, Any]) -> None:
    """A worker's line for its starter."""
    print(f"{MARK}{json.dumps(record)}", flush=True)


def in_turn(job: str, names: list[str], options: list[str], rounds: int) -> dict[str, Side]:
    """Every side's steps, one after the other; each round begins with the next side."""
    sides = {name: Side(job, name, options) for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sides[name].step()
    for side in sides.values():
        side.process.communicate()
    return sides


def ratio(name: str, theirs: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    """Their seconds over ours for the same work.

    Args:
        name: of the figure.
        theirs, ours: seconds, (pairs,). The dialogues of all pairs together are the same for both.

    Returns:
        `name`: of the sums; `name_median`: of the pairs'; `name_spread`: percentiles 5 and 95 of the first,
        by bootstrap over pairs.
    """
    rows = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    spread = np.percentile(theirs[rows].sum(1) / ours[rows].sum(1), (5, 95))
    return {
        name: round(float(theirs.sum() / ours.sum()), 3),
        f"{name}_median": round(float(np.median(theirs / ours)), 3),
        f"{name}_spread": [round(float(x), 3) for x in spread],
    }
