"""The benchmark as it is run: real processes in turn, the record and the picture; and the check of a GPU."""

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.warm_python import WarmPython

from scripts.benchmarks import costs, gpu_check
from scripts.benchmarks.against_peft import turns
from scripts.benchmarks.against_peft.picture import draw_bench
from scripts.benchmarks.against_peft.turns import ratio
from scripts.benchmarks.bench import parsed

PREPARE = """
import sys
del sys.modules["peft"]  # which commands hide
import scripts.benchmarks.against_peft.worker
"""


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    """Return an interpreter that has imported what the benchmark's workers import, PEFT too."""
    started = WarmPython(PREPARE, OMP_NUM_THREADS="1")
    yield started
    started.close()


@pytest.fixture(scope="module")
def record(python: WarmPython) -> dict[str, Any]:
    """Return the record of the benchmark as `make test-gpu` calls it, with its other comparisons."""

    def run(command: list[str], check: bool, **options: Any) -> None:
        done = python.run(command, **options)
        assert done.returncode == 0, done.stderr

    given = Namespace(small=True, device="cpu", shape="tiny")
    sample = ("--data", "embedded", "--tokenizer", "lora_hf/assets/tiny_t5")
    more = ("--count", "--load-in-4bit", "--only", "train", "evaluate", "beams")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu_check, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))
        return gpu_check.bench(given, *sample, *more)


def test_the_ratio_is_that_of_the_sums_with_percentiles_over_pairs() -> None:
    found = ratio("x", np.array([4.0, 2.0]), np.array([1.0, 1.0]))
    assert found == {"x": 3.0, "x_median": 3.0, "x_spread": [2.0, 4.0]}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_sides_train_on_the_same_losses_and_write_the_same_summaries(
    record: dict[str, Any], tmp_path: Path
) -> None:
    train = record["train"]
    assert train["losses_agree"] is True and train["losses_apart"] < 1e-4
    assert len(set(train["losses"]["ours"])) == 6
    assert all(train[key] > 0 for key in ("ratio_default", "ratio_best", "memory_ratio"))
    assert record["dora"]["ratio"] > 0
    beams = record["evaluate_beams"]  # the same comparison as `evaluate`, by another setting
    assert beams["same_tokens"] is True and beams["ratio"] > 0 and beams["beams"] == 4
    assert all(0 < share < 1 for share in train["share_of_matrix_rate"].values())
    assert train["tokens_per_second"].keys() == train["share_of_matrix_rate"].keys()
    assert record["machine"]["device"] and record["versions"]["torch"]
    draw_bench(record, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_check_of_a_gpu_finds_nothing_wrong_on_a_cpu(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "table.md"
    words = ["gpu_check.py", "--device", "cpu", "--small", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(gpu_check, "bench", lambda given, *options: record)
    monkeypatch.setattr(gpu_check, "set_verbosity_error", lambda: None)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    table = output.read_text()
    assert ended.value.code == 0, table
    assert "LOOK" not in table and table.count(" | ok |") == 6
    assert "out of memory: 2 of 4 dialogues at a time" in table


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--pairs", "0"], "--pairs: '0': give a whole number of 1 or more"),
        (["--r", "x"], "--r: 'x': give a whole number"),
        (["--data", "/nope"], "--data '/nope': no such folder"),
        (["--tokenizer", "/nope"], "--tokenizer '/nope': no such folder"),
    ],
)
def test_a_bad_option_is_one_error(words: list[str], expected: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *words])
    with pytest.raises(SystemExit, match="2"):
        parsed()
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_the_figure_shows_the_parts_that_were_measured(tmp_path: Path) -> None:
    record = {
        "machine": {"device": "cpu"},
        "settings": {"shape": "small", "r": "8"},
        "evaluate": {"ratio": 3.5, "ratio_spread": [3.2, 3.9]},
    }
    draw_bench(record, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_cost_grows_with_length_and_is_drawn(
    tmp_path: Path, python: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = SimpleNamespace(Popen=python.start, PIPE=subprocess.PIPE)
    monkeypatch.setattr(turns, "subprocess", started)
    # Lengths far apart: the allocator alone moves the peak of a small step by tens of MiB.
    monkeypatch.setitem(costs.VARIED, "length", [64, 1024])
    monkeypatch.setattr(costs, "TIMED", 1)
    options = ["--only", "length", "--shape", "tiny", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["costs.py", *options])
    costs.main()
    points = json.loads((tmp_path / "costs.json").read_text())["points"]["length"]
    assert [point["value"] for point in points] == [64, 1024]
    for side in ("ours", "peer"):
        short, long = (point[side] for point in points)
        assert 0 < short["mib"] < long["mib"] < long["mib_with_weights"]
        assert 0 < short["seconds"]
    assert {file.name for file in tmp_path.glob("*.svg")} == {"length-light.svg", "length-dark.svg"}
