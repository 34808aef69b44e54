"""Compare the time of tasks on a machine whose speed changes during the measurement."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any


def time_in_turn(tasks: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each task in each round. A round runs every task once, in rotating order.

    A temporary slowdown affects all tasks of a round, so that ratios within a round are steadier than times.
    The first round is not counted, because caches are still empty.

    Args:
        tasks: tasks by name; each returns when its work is done, also on a GPU.
        rounds: number of rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            tasks[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios_to(baseline: str, seconds: Mapping[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """Return the ratio of each task's time to the baseline's in the same round: median, then quartiles.

    Args:
        baseline: a key of `seconds`.
        seconds: result of `time_in_turn` with at least two rounds.
    """
    found = {}
    for name, times in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(times, seconds[baseline], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        found[name] = (median(ratios), low, high)
    return found
