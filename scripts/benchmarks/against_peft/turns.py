"""Run workers in turn: one process per library, each taking one step on request."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

MARK = "bench "
"""Prefix of the lines that a worker sends to the benchmark; the Trainer prints lines too."""
RESAMPLES = 2000


class Side:
    """A worker process and the records of its steps."""

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
        """Return the values of `key` in the last `steps` steps."""
        return np.array([step[key] for step in self.steps[-steps:]])


def send(record: dict[str, Any]) -> None:
    """Send a record from a worker to the benchmark."""
    print(f"{MARK}{json.dumps(record)}", flush=True)


def in_turn(job: str, names: list[str], options: list[str], rounds: int) -> dict[str, Side]:
    """Run `rounds` rounds in which each worker takes one step; each round begins with the next worker."""
    sides = {name: Side(job, name, options) for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sides[name].step()
    for side in sides.values():
        side.process.communicate()
    return sides


def ratio(name: str, theirs: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    """Return the ratio of two workers' times for the same work.

    Args:
        name: name of the ratio in the result.
        theirs, ours: seconds of each pair of steps, (pairs,). All pairs together process the same dialogues.

    Returns:
        `name`: sum(theirs) / sum(ours); `name_median`: median of the pairs' ratios; `name_spread`:
        percentiles 5 and 95 of `name`, by bootstrap over pairs.
    """
    rows = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    spread = np.percentile(theirs[rows].sum(1) / ours[rows].sum(1), (5, 95))
    return {
        name: round(float(theirs.sum() / ours.sum()), 3),
        f"{name}_median": round(float(np.median(theirs / ours)), 3),
        f"{name}_spread": [round(float(x), 3) for x in spread],
    }
