"""The benchmark as it is run: real processes in turn, the record and the picture."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.benchmarks import costs
from scripts.benchmarks.against_peft.picture import draw_bench
from scripts.benchmarks.against_peft.turns import ratio
from scripts.benchmarks.bench import parsed

ROOT = Path(__file__).parents[2]


def bench(output: Path, *options: str) -> dict[str, Any]:
    sample = [
        "--data",
        "embedded",
        "--tokenizer",
        "lora_hf/assets/tiny_t5",
        "--batch",
        "2",
        "--dialogues",
        "3",
        "--shape",
        "tiny",
    ]
    command = [
        sys.executable,
        "scripts/benchmarks/bench.py",
        *sample,
        "--pairs",
        "1",
        "--output",
        str(output),
        *options,
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    record: dict[str, Any] = json.loads(output.read_text())
    return record


def test_the_ratio_is_that_of_the_sums_with_percentiles_over_pairs() -> None:
    found = ratio("x", np.array([4.0, 2.0]), np.array([1.0, 1.0]))
    assert found == {"x": 3.0, "x_median": 3.0, "x_spread": [2.0, 4.0]}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_sides_train_on_the_same_losses_and_write_the_same_summaries(tmp_path: Path) -> None:
    record = bench(tmp_path / "bench.json", "--count", "--only", "train", "beams")
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
    assert (tmp_path / "bench.png").stat().st_size > 10_000


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
@pytest.mark.timeout(600)
def test_cost_grows_with_length_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lengths far apart: the allocator alone moves the peak of a small step by tens of MiB.
    monkeypatch.setitem(costs.VARIED, "length", [64, 1024])
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
