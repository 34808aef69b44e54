"""The check that a person with a GPU runs: what it prints. `test_bench.py` runs its small form."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from scripts.benchmarks import gpu_check
from scripts.benchmarks.against_peft.turns import ratio
from scripts.benchmarks.gpu_check import Row


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_check.parsed()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "sees no GPU" in said


def test_a_check_that_fails_is_a_row_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(given: Namespace) -> Iterator[Row]:
        yield Row("first", "1")
        raise RuntimeError("no kernel | here\nand more")

    monkeypatch.setattr(gpu_check, "CHECKS", (broken, lambda given: iter([Row("last", "2", True)])))
    rows = gpu_check.run_all(Namespace())
    assert [row.is_ok for row in rows] == [None, False, True]
    assert "| broken | RuntimeError: no kernel / here | LOOK |" in capsys.readouterr().out


def test_the_comparison_with_peft_is_read_from_the_benchmark_s_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def record(given: Namespace, *options: str) -> dict[str, Any]:
        compiled = "--compile" in options
        train = {
            **ratio("ratio_default", np.array([4.0]), np.array([1.0])),
            **ratio("ratio_best", np.array([3.0]), np.array([1.0])),
            "tokens_per_second": {"ours": 2000 + 500 * compiled, "peer_best": 700},
            "mib": {"ours": 100, "peer": 300},
            "compiled_graphs": 4,
            "losses_agree": not compiled,
            "losses_apart": 1e-6,
        }
        evaluate = ratio("ratio", np.array([5.0]), np.array([1.0])) | {
            "same_tokens": True,
            "summaries_the_same": "3 of 3",
        }
        four_bit = ratio("ratio", np.array([2.0]), np.array([1.0]))
        return {"train": train, "evaluate": evaluate, "four_bit": four_bit}

    monkeypatch.setattr(gpu_check, "bench", record)
    rows = {row.check: row for row in gpu_check.against_peft(Namespace(small=False))}
    assert rows["tokens per second"].result == "ours 2,000, peer best 700"
    assert rows["a step in NF4 / dense"].result == "2.00 [2.00, 2.00]"
    assert rows["greedy summaries of PEFT and ours, float32"].is_ok
    assert rows["compiled"].is_ok is False and "2,500 tokens per second" in rows["compiled"].result
