"""Sweeps: the plateau by hand, a grid and a search as they are run, one that was killed, and the report."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.inputs import SMALL_COMPARISON
from support.selection import slow_except

from lora_hf import cli
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import NotWritten, RunFailed, UserError
from lora_hf.evaluation.metrics import ScoreValues, Scoring
from lora_hf.experiments import runner
from lora_hf.experiments import sweep as sweeping
from lora_hf.experiments.compare import compare
from lora_hf.experiments.search import kept_score, search
from lora_hf.experiments.summary import plateau, series_of
from lora_hf.files import write_json
from lora_hf.reporting.comparison_table import comparison_lines, last_loss
from lora_hf.run_files import CONFIG, DIVERGED, RESULTS, ROUGE_NAMES, TRAINED
from lora_hf.runs.run_dir import RunDirectory, sources_of

MAIN = Scoring().main
EVAL = "eval_strategy: steps, eval_steps: 0.999, "


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    text = SMALL_COMPARISON.replace("{max_steps", f"{{{EVAL}max_steps")
    file.write_text(f"{text}output_dir: {tmp_path / 'run'}\n")
    return file


def scores(**means: float) -> dict[str, Any]:
    """Forty dialogues, half above and half below each mean by the same."""
    return {
        name: {"rouge1": ScoreValues(np.array([mean + (0.01 if i % 2 else -0.01) for i in range(40)]))}
        for name, mean in means.items()
    }


def test_the_plateau_begins_at_the_first_value_that_no_later_one_improves() -> None:
    assert plateau(["a", "b", "c"], scores(a=0.1, b=0.3, c=0.3), MAIN) == "b"
    assert plateau(["a", "b", "c"], scores(a=0.1, b=0.2, c=0.3), MAIN) == "c"
    assert plateau(["a", "b", "c"], scores(a=0.3, b=0.2, c=0.1), MAIN) == "a"


def test_lines_are_drawn_along_the_first_axis_in_the_order_of_values() -> None:
    points = {f"{r}{s}": {"lora.r": r, "scaling": s} for r in (16, 2) for s in "xy"}
    assert series_of("lora.r", points) == {"scaling x": ["2x", "16x"], "scaling y": ["2y", "16y"]}
    assert series_of("k", {"b": {"k": "b"}, "a": {"k": "a"}}) == {"": ["b", "a"]}


def test_the_loss_is_that_of_validation_if_measured_and_a_mean_over_seeds() -> None:
    log = [{"loss": 3.0}, {"eval_loss": 2.5}, {"loss": 2.0}]
    assert last_loss({"log": log}) == 2.5 and last_loss({"log": log[:1]}) == 3.0 and last_loss({}) is None
    assert last_loss({"runs": [{"log": log}, {"log": [{"eval_loss": 1.5}]}]}) == 2.0


def test_a_grid_is_run_reused_and_reported(
    config_file: Path, runs_in_this_process: list[Any], no_figures: None
) -> None:
    space = [
        "sweep.space={lora: {r: [1, 4]}, scaling: {a: {lora.use_rslora: false}, b: {lora.use_rslora: true}}}"
    ]
    record = sweeping.sweep(config_file, space)
    root = config_file.parent / "run"
    assert record["order"] == ["base", "r-1_scaling-a", "r-1_scaling-b", "r-4_scaling-a", "r-4_scaling-b"]
    assert record["series"]["scaling b"]["values"] == [1, 4] and record["axis"] == "lora.r"
    weights = {name: record["variants"][name]["trainable_parameters"] for name in record["order"]}
    assert weights["r-4_scaling-a"] == 4 * weights["r-1_scaling-b"] > weights["base"] == 0
    assert len(comparison_lines(record)) == 6
    assert "use_rslora: true" in (root / "r-4_scaling-b/config.yaml").read_text()
    page = (root / "sweep.html").read_text()
    assert "ROUGE-1 along lora.r" in page and "lora-hf sweep --config" in page
    ran = len(runs_in_this_process)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("results.json")}
    assert sweeping.sweep(config_file, space) == record
    assert {p: p.stat().st_mtime_ns for p in root.rglob("results.json")} == before
    assert len(runs_in_this_process) == ran  # finished runs are known without a process for each
    assert cli.run(["report", str(root)], debug=False) == 0
    assert (root / "sweep.html").read_text() == page and json.loads(
        (root / "sweep.json").read_text()
    ) == record


def test_an_invalid_or_read_only_search_database_is_one_error(tmp_path: Path) -> None:
    fields = {"output_dir": str(tmp_path), "sweep": {"space": {"lora.r": [2, 4]}, "trials": 2}}
    fields["training"] = {"eval_strategy": "epoch"}
    (tmp_path / "sweep.db").write_bytes(b"no store" * 1000)
    with pytest.raises(NotWritten, match="not a database.*sweep.db"):
        search(RunConfig.model_validate(fields), lambda name, point: None)


def test_a_repeated_resumed_or_extended_search_tries_the_same_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the tenth trial too, from which on a point depends on the scores before it."""

    def points(folder: str, seed: int, trials: int = 12, killed_at: str = "") -> dict[str, Any]:
        space = {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "lora.r": [2, 4]}
        sweep = {"space": space, "trials": trials}
        fields = {"output_dir": str(tmp_path / folder), "seed": seed, "sweep": sweep}
        fields["training"] = {"eval_strategy": "epoch"}

        def run(name: str, point: Any) -> None:
            if name == killed_at:
                raise RunFailed(-9)
            log = [{"eval_rouge1": point["training.learning_rate"]}]
            write_json(tmp_path / folder / name / TRAINED, {"log": log})

        return search(RunConfig.model_validate(fields), run)

    whole = points("one", 1)
    assert len({point["training.learning_rate"] for point in whole.values()}) == 12
    assert points("extended", 1, trials=2) == {name: whole[name] for name in ("trial-000", "trial-001")}
    for name in ("trial-003", "trial-010"):
        with pytest.raises(RunFailed):
            points("extended", 1, killed_at=name)
    assert points("extended", 1) == points("again", 1) == whole
    assert points("other", 2, trials=1)["trial-000"] != whole["trial-000"]
    assert not caplog.messages
    assert points("extended", 1, trials=2) == whole
    assert caplog.messages == ["sweep.trials=2, and the folder holds 12: all of them count"]


@pytest.mark.slow
def test_a_killed_search_is_resumed(
    config_file: Path, runs_in_this_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = [
        "sweep.space={training.learning_rate: {low: 1e-4, high: 1e-2, log: true}, lora.r: [2, 4]}",
        "sweep.trials=3",
    ]
    run_each = sweeping.run_each

    def killed(config: Any, overrides: Any, arms: Any) -> None:
        if arms[0].name == "trial-001":
            raise RunFailed(-9)
        run_each(config, overrides, arms)

    with monkeypatch.context() as patched, pytest.raises(RunFailed):
        patched.setattr(sweeping, "run_each", killed)
        sweeping.sweep(config_file, space)
    record = sweeping.sweep(config_file, space)
    assert record["order"] == ["base", "trial-000", "trial-001", "trial-002"]
    for name, point in record["points"].items():
        assert 1e-4 <= point["training.learning_rate"] <= 1e-2 and point["lora.r"] in (2, 4)
        assert record["variants"][name]["learning_rate"] == point["training.learning_rate"]
    assert sweeping.sweep(config_file, space)["points"] == record["points"]  # none is run again
    with pytest.raises(UserError, match="search of another space"):
        sweeping.sweep(config_file, ["sweep.space={lora.r: [2, 4]}", "sweep.trials=3"])


@pytest.fixture
def runs_of_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let each run only write its files, with its learning rate as the score; return the folders' names."""
    ran: list[str] = []

    def run_process(command: list[str]) -> None:
        config = load_config(command[5], command[6:])
        run = RunDirectory(config)
        run.check()
        run.prepare({}, sources_of(config))
        if run.results() is None:
            score = config.training["learning_rate"]
            write_json(run / TRAINED, {"log": [{"eval_rouge1": score}]})
            means = dict.fromkeys(ROUGE_NAMES, score)
            write_json(run / RESULTS, means | {"rouge1_interval": [0, 1], "n_examples": 6})
            ran.append(run.path.name)

    monkeypatch.setattr(runner, "run_process", run_process)
    monkeypatch.setattr(sweeping, "write_report", lambda name, root, folders, known: known)
    return ran


SEARCH = ["sweep.space={training.learning_rate: {low: 1e-4, high: 1e-2, log: true}}", "sweep.trials=2"]


GRID = ["sweep.space={training.learning_rate: ['1e-3', 1.0e-2, 1.0e-1]}"]


def test_values_that_diverge_are_left_out_of_a_grid_and_tried_again(
    config_file: Path,
    runs_of_files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    diverging, run = ["0.01"], runner.run_process
    status = 2

    def run_process(command: list[str]) -> None:
        config = load_config(command[5], command[6:])
        if config.training["learning_rate"] in map(float, diverging) and config.method != "base":
            RunDirectory(config).prepare({}, sources_of(config))
            if status == 2:
                write_json(Path(config.output_dir) / DIVERGED, {"error": "step 3: the loss is nan"})
            raise RunFailed(status)
        run(command)

    monkeypatch.setattr(runner, "run_process", run_process)
    record = sweeping.sweep(config_file, GRID)
    assert [*record["points"]] == ["learning_rate-1e-3", "learning_rate-0_1"]
    assert record["diverged"] == ["learning_rate-0_01"]
    says = "learning_rate-0_01 has diverged: the report leaves learning_rate-0_01 out"
    assert says in caplog.messages and runs_of_files == ["base", *record["points"]]
    status = 1  # stopped by something else
    with pytest.raises(RunFailed):
        sweeping.sweep(config_file, GRID)
    diverging.clear()
    assert len(sweeping.sweep(config_file, GRID)["points"]) == 3 and runs_of_files[3:] == [
        "learning_rate-0_01"
    ]
    status, runs_of_files[:] = 2, []
    diverging.append("0.01")
    sweeping.sweep(config_file, [*GRID, "seeds=[1, 2]", f"output_dir={config_file.parent / 'seeds'}"])
    kept = ("learning_rate-1e-3", "learning_rate-0_1")
    assert runs_of_files == ["base", *(f"{name}{seed}" for name in kept for seed in ("", "-seed-2"))]


def test_a_grid_in_which_all_diverges_is_an_error(
    config_file: Path, runs_of_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner.run_process

    def run_process(command: list[str]) -> None:
        config = load_config(command[5], command[6:])
        if config.method == "base":
            return run(command)
        write_json(Path(config.output_dir) / DIVERGED, {"error": "step 3: the loss is nan"})
        raise RunFailed(2)

    monkeypatch.setattr(runner, "run_process", run_process)
    with pytest.raises(UserError, match="have diverged: lower training.learning_rate"):
        sweeping.sweep(config_file, GRID)
    with pytest.raises(RunFailed):  # a comparison needs each of its runs
        compare(config_file, [f"output_dir={config_file.parent / 'compared'}"])


@pytest.mark.parametrize("trials", [[], ["sweep.trials=2"]])
def test_what_a_later_run_refuses_is_found_before_the_first_run(
    config_file: Path, runs_of_files: list[str], trials: list[str]
) -> None:
    axis = "sweep.space={lora.target_modules: [[q, v], [query]]}"
    with pytest.raises(UserError, match=r"\['query'\] matched no layer"):
        sweeping.sweep(config_file, [axis, *trials])
    with pytest.raises(UserError, match=r"\['query'\] matched no layer"):
        compare(config_file, ["lora.target_modules=[query]"])
    axis = "sweep.space={training.optim: [adamw_torch, lomo]}"
    with pytest.raises(UserError, match="training.optim='lomo'"):
        sweeping.sweep(config_file, [axis, *trials])
    with pytest.raises(UserError, match="training.optim='lomo'"):
        compare(config_file, ["arms={full: {training: {optim: lomo}}}"])
    assert not runs_of_files


def test_a_trial_that_diverges_counts_as_failed_and_is_not_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = {"training.learning_rate": {"low": 1e-4, "high": 1e3, "log": True}}
    fields = {"sweep": {"space": space, "trials": 4}, "training": {"eval_strategy": "epoch"}}
    ran: list[str] = []

    def found(folder: str, diverging: tuple[str, ...], status: int = 2) -> dict[str, Any]:
        def run(name: str, point: Any) -> None:
            ran.append(name)
            if name in diverging:
                write_json(tmp_path / folder / name / DIVERGED, {"error": "step 3: the loss is nan"})
                raise RunFailed(status)
            write_json(tmp_path / folder / name / TRAINED, {"log": [{"eval_rouge1": 0.5}]})

        return search(RunConfig.model_validate(fields | {"output_dir": str(tmp_path / folder)}), run)

    trials = [f"trial-00{number}" for number in range(4)]
    first = found("one", (trials[1],))
    assert [*first] == [trials[0], *trials[2:]] and ran == trials
    assert caplog.messages == ["trial-001 has diverged and counts as failed; the search continues"]
    ran.clear()
    assert found("one", (trials[1],)) == first and ran == [trials[0], *trials[2:]]  # which are finished
    with pytest.raises(UserError, match=r"all 4 trials have diverged: narrow the ranges of sweep\.space"):
        found("all", tuple(trials))


def test_a_trial_is_judged_by_the_weights_that_it_keeps(tmp_path: Path) -> None:
    evaluations = [(3.0, 0.25), (2.0, 0.1), (4.0, 0.08)]
    log = [{"loss": 5.0}, *({"eval_loss": loss, "eval_rouge1": score} for loss, score in evaluations)]
    write_json(tmp_path / TRAINED, {"log": log, "best_metric": 0.25})
    by_rouge = {"load_best_model_at_end": True, "metric_for_best_model": "rouge1"}
    assert kept_score(tmp_path, "rouge1", by_rouge) == 0.25
    assert kept_score(tmp_path, "rouge1", {"metric_for_best_model": "rouge1"}) == 0.08
    write_json(tmp_path / TRAINED, {"log": log, "best_metric": 2.0})
    assert kept_score(tmp_path, "rouge1", {"load_best_model_at_end": True}) == 0.1
    with pytest.raises(UserError, match="no eval_rouge2 in its log: set training.eval_strategy"):
        kept_score(tmp_path, "rouge2", {})


def test_of_two_searches_in_one_folder_the_second_waits(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would make the database, and each would add its trials to it."""
    held: list[str] = []

    def is_held(*_: Any) -> None:
        folder = os.open(config_file.parent / "run", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)
        held.append("by the first")
        raise RunFailed(1)

    monkeypatch.setattr(sweeping, "run_each", is_held)
    for _ in range(2):  # an error releases it
        with pytest.raises(RunFailed):
            sweeping.sweep(config_file, SEARCH)
    assert len(held) == 2


@pytest.mark.parametrize(
    ("changed", "expected"),
    slow_except(
        [(["seed=7", "sweep.trials=3"], "seed: 42 -> 7")],
        [
            (["training.max_steps=6"], "training.max_steps: 2 -> 6"),
            (["seed=7", "sweep.trials=3"], "seed: 42 -> 7"),
            (
                ["sweep.space={training.learning_rate: {low: 1e-4, high: 1e-3, log: true}}"],
                "sweep.space.training.learning_rate.high: 0.01 -> 0.001",
            ),
        ],
    ),
)
def test_a_search_with_other_inputs_is_refused_or_begins_anew(
    config_file: Path, runs_of_files: list[str], changed: list[str], expected: str
) -> None:
    root, trials = config_file.parent / "run", ["trial-000", "trial-001"]
    first = sweeping.sweep(config_file, SEARCH)
    assert runs_of_files == ["base", *trials]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(UserError, match=rf"\({expected}\).*overwrite=true"):
        sweeping.sweep(config_file, [*SEARCH, *changed])
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert sweeping.sweep(config_file, [*SEARCH, "overwrite=true"])["points"] == first["points"]
    assert runs_of_files == ["base", *trials]  # the same inputs: nothing is replaced

    anew = [*SEARCH, *changed, "overwrite=true"]  # of a field given twice, the last counts
    record = sweeping.sweep(config_file, anew)
    assert runs_of_files[3:5] == trials and sorted(record["points"]) == runs_of_files[3:]
    for name, point in record["points"].items():
        config = load_config(root / name / CONFIG)
        assert config.training["learning_rate"] == point["training.learning_rate"]
    ran = len(runs_of_files)
    assert sweeping.sweep(config_file, anew)["points"] == record["points"]
    assert sweeping.sweep(config_file, anew[:-1])["points"] == record["points"]
    assert len(runs_of_files) == ran


def test_a_trial_whose_folder_was_deleted_is_run_again(config_file: Path, runs_of_files: list[str]) -> None:
    first = sweeping.sweep(config_file, SEARCH)
    shutil.rmtree(config_file.parent / "run" / "trial-000")
    assert sweeping.sweep(config_file, SEARCH)["points"] == first["points"]
    assert runs_of_files == ["base", "trial-000", "trial-001", "trial-000"]


def test_two_runs_with_the_same_name_are_refused(config_file: Path) -> None:
    with pytest.raises(UserError, match="two runs the same name"):
        sweeping.sweep(config_file, ["sweep.space={data.prompt: ['a {dialogue}', 'a: {dialogue}']}"])


def test_a_config_without_a_sweep_is_refused(config_file: Path) -> None:
    with pytest.raises(UserError, match="has no sweep.space"):
        sweeping.sweep(config_file)
