"""A command whose work is done knows it from the recorded inputs: no loading, and no process for each run."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.inputs import SMALL_COMPARISON

from lora_hf import cli
from lora_hf.config import RunConfig
from lora_hf.errors import NotWritten, UserError
from lora_hf.experiments import compare as comparing
from lora_hf.experiments.report import report_key
from lora_hf.experiments.runner import folders_of
from lora_hf.run_files import INPUTS, RESULTS, ROUGE_NAMES
from lora_hf.run_records import read_record
from lora_hf.runs.run_dir import (
    METRICS,
    SOURCES,
    RunDirectory,
    changed_metrics,
    finished_result,
    metric_hashes,
    sources_of,
)

HASHES = {"data": "d1", "model": "m1"}
RECORD = dict.fromkeys(ROUGE_NAMES, 0.5)


def dialogues(folder: Path) -> Path:
    """Three splits of files."""
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text('{"dialogue": "A: Hi", "summary": "A greets."}\n')
    return folder


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A finished run on files of its own."""
    data = {"dataset_name": str(dialogues(tmp_path / "data"))}
    made = RunConfig.model_validate({"output_dir": str(tmp_path / "run"), "data": data})
    run = RunDirectory(made)
    run.prepare(HASHES, sources_of(made))
    (run / RESULTS).write_text(json.dumps(RECORD))
    return made


def test_a_run_that_has_ended_with_these_inputs_is_known(config: RunConfig) -> None:
    assert finished_result(config) == RECORD
    assert finished_result(config.model_copy(update={"overwrite": True})) == RECORD


@pytest.mark.parametrize("by_name", [True, False])
def test_files_in_subfolders_and_those_that_data_files_names_are_compared(
    tmp_path: Path, by_name: bool
) -> None:
    folder = dialogues(tmp_path / "data")
    (folder / "files").mkdir()
    for file in folder.glob("*.jsonl"):
        file.rename(folder / "files" / file.name)
    data: dict[str, Any] = {"dataset_name": str(folder)}
    if by_name:
        data = {
            "data_files": {"train": str(folder / "files/train.jsonl"), "test": f"{folder}/files/t*t.jsonl"}
        }
    config = RunConfig.model_validate({"data": data})
    before = sources_of(config)
    assert before is not None and before == sources_of(config)
    touch(folder / "files/test.jsonl")
    assert sources_of(config) != before


@pytest.mark.parametrize("section", ["task", "retention"])
def test_a_changed_file_of_a_metric_is_another_run(tmp_path: Path, section: str) -> None:
    metric = tmp_path / "mine.py"
    metric.write_text("def per_example(p, r): return [1] * len(p)")
    data = {"dataset_name": str(dialogues(tmp_path / "data"))}
    task: dict[str, Any] = {"metrics": ["rouge", str(metric)]}
    further = {"more": {"task": task, "data": data}}
    fields: dict[str, Any] = {"task": task} if section == "task" else {"retention": further}
    config = RunConfig.model_validate({"output_dir": str(tmp_path / "run"), "data": data, **fields})
    run = RunDirectory(config)
    run.prepare(HASHES, sources_of(config))
    (run / RESULTS).write_text(json.dumps(RECORD | {"mine": 1.0}))
    assert finished_result(config) is not None
    run.check()
    metric.write_text("def per_example(p, r): return [2] * len(p)")
    assert finished_result(config) is None
    with pytest.raises(UserError, match=r"other inputs \(metrics\..*mine.py: '\w{16}' -> '\w{16}'\)"):
        run.check()  # before anything is loaded
    assert changed_metrics(run.path, [str(metric)]) and not changed_metrics(run.path, ["missing.py"])
    (run / INPUTS).write_text(json.dumps(HASHES))  # a run of an earlier version, which recorded none
    run.prepare(HASHES, sources_of(config))
    assert read_record(run / INPUTS) == HASHES | {
        METRICS: metric_hashes([str(metric)]),
        SOURCES: sources_of(config),
    }


def touch(file: Path) -> None:
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def rewrite_with_the_old_time(file: Path) -> None:
    """As `rsync --times` and unpacked archives do it; the size stays too."""
    stat = file.stat()
    file.write_text(file.read_text().replace("Hi", "Ho"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda run, data: (run / RESULTS).unlink(),
        lambda run, data: (run / RESULTS).write_text("{"),
        lambda run, data: (run / INPUTS).write_text(json.dumps(HASHES)),  # a run of an earlier version
        lambda run, data: (run / RESULTS).write_text("{}"),
        lambda run, data: touch(data / "test.jsonl"),
        lambda run, data: rewrite_with_the_old_time(data / "test.jsonl"),
        lambda run, data: (data / "train.jsonl").write_text("{}"),
        lambda run, data: (data / "more.jsonl").write_text("{}"),
        lambda run, data: (data / "test.jsonl").unlink(),
    ],
    ids=[
        "no results",
        "torn results",
        "no sources",
        "no scores",
        "touched",
        "old time",
        "rewritten",
        "added",
        "removed",
    ],
)
def test_anything_else_is_left_to_the_run_to_find_out(config: RunConfig, change: Any) -> None:
    change(Path(config.output_dir), Path(config.data.dataset_name))
    assert finished_result(config) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"lora": {"r": 3}},
        {"seed": 7},
        {"training": {"push_to_hub": True}},
        {"training": {"report_to": "nobody"}},  # changes no result, and has not been checked
        {"method": "base"},
    ],
    ids=str,
)
def test_another_config_is_another_run_and_a_push_is_the_run_s_to_make(
    config: RunConfig, fields: dict[str, Any]
) -> None:
    other = RunConfig.model_validate(config.model_dump() | fields)
    assert finished_result(other) is None


def test_a_branch_on_the_hub_may_move_and_a_commit_does_not() -> None:
    def of(revision: str | None) -> str | None:
        return sources_of(
            RunConfig.model_validate({"model": {"model_name_or_path": "a/b", "revision": revision}})
        )

    assert of(None) is of("main") is of("v1.0") is None
    assert of("0" * 40) is not None


def test_a_folder_that_cannot_be_read_is_left_to_loading_to_report(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert sources_of(config) is None


def test_a_run_of_an_earlier_version_records_its_sources_when_it_is_asked_for_again(
    config: RunConfig,
) -> None:
    run = RunDirectory(config)
    (run / INPUTS).write_text(json.dumps(HASHES))
    run.prepare(HASHES, sources_of(config))
    assert read_record(run / INPUTS) == HASHES | {SOURCES: sources_of(config)}
    assert finished_result(config) == RECORD


def test_a_finished_run_where_nothing_can_be_written_is_left_as_it_is(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path, value: object) -> None:
        raise NotWritten(errno.EROFS, "Read-only file system", str(file))

    run = RunDirectory(config)
    (run / INPUTS).write_text(json.dumps(HASHES))
    monkeypatch.setattr("lora_hf.runs.run_dir.write_json", refuse)
    run.prepare(HASHES, sources_of(config))
    assert run.results() == RECORD and read_record(run / INPUTS) == HASHES


@pytest.mark.slow
def test_a_comparison_that_is_done_starts_no_process_and_writes_nothing(
    tmp_path: Path, runs_in_this_process: list[Any], no_figures: None
) -> None:
    file, root = tmp_path / "tiny.yaml", tmp_path / "run"
    file.write_text(f"{SMALL_COMPARISON}output_dir: {root}\n")
    first = comparing.compare(file)
    assert len(runs_in_this_process) == 3
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    code = f"""
import sys
from lora_hf import cli
status = cli.run(["compare", "--config", {str(file)!r}], debug=False)
heavy = {{"torch", "transformers", "datasets", "accelerate", "matplotlib", "nltk"}} & set(sys.modules)
print(status, sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    assert "ROUGE-Lsum" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert comparing.compare(file) == first and len(runs_in_this_process) == 3
    page = root / "comparison.json"
    page.write_text(page.read_text().replace('"n_examples": 6', '"n_examples": 7'))
    assert (
        comparing.compare(file) == first and read_record(page) == first
    )  # an edited report is written again
    lora = root / "lora" / "predictions.jsonl"
    lora.write_text(lora.read_text().replace('"prediction": "', '"prediction": "x'))
    folders = folders_of(comparing.plan_comparison(RunConfig.model_validate({"output_dir": str(root)})))
    assert report_key(first, folders, {"command": first["command"]}) != first["made_from"]
    assert comparing.compare(file)["arms"] == first["arms"]  # the report is written again, not the runs
    assert len(runs_in_this_process) == 3


def test_train_of_a_finished_run_prints_its_scores(config: RunConfig, capsys: pytest.CaptureFixture) -> None:
    record = {
        "rouge1": 0.5,
        "rouge2": 0.25,
        "rougeL": 0.5,
        "rougeLsum": 0.5,
        "n_examples": 1,
        "mean_words": 2,
    }
    intervals = {f"{name}_interval": [0, 1] for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}
    (Path(config.output_dir) / RESULTS).write_text(json.dumps(record | intervals))
    words = ["train", "--config", str(Path(config.output_dir) / "config.yaml")]
    assert cli.run([*words, f"output_dir={config.output_dir}"], debug=False) == 0
    printed = capsys.readouterr()
    assert "rouge1     0.5000" in printed.out and "already finished with the same inputs" in printed.err
