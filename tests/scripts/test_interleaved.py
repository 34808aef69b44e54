"""Timing in turn: the order of the calls, the uncounted first round, and ratios within a round."""

import pytest

from scripts.benchmarks import interleaved


def test_tasks_run_in_turn_and_the_first_round_is_not_counted(monkeypatch):
    clock, calls = [0.0], []

    def task(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds + (100 if len(calls) <= 2 else 0)  # the first of each fills caches

        return run

    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: clock[0])
    seconds = interleaved.time_in_turn({"a": task("a", 2.0), "b": task("b", 3.0)}, rounds=3)
    assert calls == ["a", "b", "b", "a"] * 2  # neither always follows the other
    assert seconds == {"a": [2.0] * 3, "b": [3.0] * 3}


def test_a_ratio_is_taken_within_its_round():
    seconds = {"base": [1.0, 2.0, 4.0], "slow": [1.5, 3.0, 4.0]}  # the machine slows down; 1.5, 1.5 and 1
    found = interleaved.ratios_to("base", seconds)
    assert found["base"] == (1, 1, 1)
    assert found["slow"] == pytest.approx((1.5, 1.25, 1.5))
