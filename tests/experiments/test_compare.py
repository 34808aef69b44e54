"""The comparison: its plan, its arms' commands, reuse, refusal and overwriting, signals and statuses."""

import json
import os
import signal
import sys
import threading
import time

import pytest
import yaml
from support.inputs import SMALL_COMPARISON

from lora_hf import cli
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import RunFailed, UserError
from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.experiments import compare as comparing
from lora_hf.experiments import runner
from lora_hf.run_files import CONFIG, RESULTS

RECORD = """method n_examples trainable_parameters total_parameters train_seconds eval_seconds
peak_memory_mib seed versions bytes_on_disk mean_words reference_words""".split()


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(SMALL_COMPARISON + f"output_dir: {tmp_path / 'run'}\n")
    return file


def stamps(root):
    return {p.parent.name: p.stat().st_mtime_ns for p in root.rglob(RESULTS)}


def test_a_comparison_is_reused_refused_and_overwritten_run_by_run(config_file, runs_in_this_process):
    root = config_file.parent / "run"
    first = comparing.compare(config_file)
    assert set(first["arms"]) == {"base", "full", "lora"}
    for method, record in first["arms"].items():
        assert record.keys() >= {*RECORD, *ROUGE_NAMES, *(f"{name}_interval" for name in ROUGE_NAMES)}
        assert record == json.loads((root / method / RESULTS).read_text())
        assert (record["method"], record["n_examples"], record["seed"]) == (method, 6, 42)
    weights = {m: (r["trainable_parameters"], r["total_parameters"]) for m, r in first["arms"].items()}
    assert weights["base"][0] == 0 and weights["full"][0] == weights["full"][1] == weights["base"][1]
    assert weights["lora"][1] - weights["lora"][0] == weights["base"][1]
    assert first["arms"]["base"]["bytes_on_disk"] == 0 < first["arms"]["lora"]["bytes_on_disk"]
    assert first["arms"]["full"]["learning_rate"] == 1e-4 and first["arms"]["lora"]["learning_rate"] == 1e-3
    assert json.loads((root / "comparison.json").read_text()) == first
    assert (root / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert "| LoRA |" in (root / "comparison.md").read_text()

    before = stamps(root)
    assert comparing.compare(config_file) == first
    assert stamps(root) == before and len(before) == 3

    held = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    ran = len(runs_in_this_process)
    with pytest.raises(UserError, match=r"run/lora' holds a run with other inputs \(lora.r: 16 -> 4\)"):
        comparing.compare(config_file, ["lora.r=4"])
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == held
    assert len(runs_in_this_process) == ran  # found before any arm ran

    second = comparing.compare(config_file, ["lora.r=4", "overwrite=true"])
    after = stamps(root)
    assert [name for name in before if after[name] != before[name]] == ["lora"]
    assert second["arms"]["lora"]["trainable_parameters"] * 4 == weights["lora"][0]
    assert load_config(root / "lora" / CONFIG).lora.r == 4


LISTED = {
    "variants": "{variants: {base: {method: base}, lora: {lora: {r: 2}}}}",
    "sweep.space": "{sweep: {space: {lora.r: [2, 4]}}}",
}


@pytest.mark.parametrize(
    ("verb", "field"),
    [("compare", "variants"), ("compare", "sweep.space"), ("methods", "sweep.space"), ("sweep", "variants")],
)
def test_runs_that_an_experiment_would_leave_out_are_refused(
    verb, field, tmp_path, capsys, runs_in_this_process
):
    file = tmp_path / "c.yaml"
    own = {"methods": LISTED["variants"], "sweep": LISTED["sweep.space"]}.get(verb, "{}")
    listed = yaml.safe_load(LISTED[field]) | yaml.safe_load(own)
    file.write_text(yaml.safe_dump(listed | {"output_dir": str(tmp_path / "runs")}))
    assert cli.run([verb, "--config", str(file)], debug=False) == 2
    error = capsys.readouterr().err
    other = "methods" if field == "variants" else "sweep"
    assert f"{field}=[" in error and f"use `lora-hf {other}`, or remove {field.split('.')[0]}" in error
    assert not runs_in_this_process and not (tmp_path / "runs").exists()


def test_a_search_refuses_several_seeds_which_its_trials_do_not_use(tmp_path, capsys, runs_in_this_process):
    words = [
        "sweep.space={lora.r: [2, 4]}",
        "sweep.trials=2",
        "seeds=[1, 2]",
        f"output_dir={tmp_path / 'runs'}",
    ]
    assert cli.run(["sweep", "--config", "quickstart", *words], debug=False) == 2
    error = capsys.readouterr().err
    assert "seeds=[1, 2] has no effect on a search (sweep.trials), which trains each trial" in error
    assert not runs_in_this_process and not (tmp_path / "runs").exists()


def test_a_mistake_in_one_run_is_reported_once_and_deletes_nothing(config_file, runs_in_this_process, capsys):
    root = config_file.parent / "run"
    words = ["train", "--config", str(config_file), f"output_dir={root / 'lora'}"]
    assert cli.run(words, debug=False) == 0
    before = stamps(root)
    capsys.readouterr()
    changed = ["lora.target_modules=[q, query]", "overwrite=true"]
    assert cli.run(["compare", "--config", str(config_file), *changed], debug=False) == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert "'query'" in error and "'wi_0'" in error
    assert stamps(root)["lora"] == before["lora"]
    assert not (root / "full").exists()  # LoRA goes before the hours of full fine-tuning


def config_of(**fields):
    return RunConfig.model_validate({"output_dir": "runs/x", **fields})


def test_base_runs_once_and_other_methods_once_per_seed():
    arms = comparing.plan_comparison(config_of(seeds=[3, 1]))
    assert [(arm.name, arm.config.method, arm.config.seed) for arm in arms] == [
        ("base", "base", 3),
        ("lora", "lora", 3),
        ("lora-seed-1", "lora", 1),
        ("full", "full", 3),
        ("full-seed-1", "full", 1),
    ]
    assert [arm.name for arm in comparing.plan_comparison(config_of())] == ["base", "lora", "full"]


@pytest.mark.parametrize(
    "extra",
    ["", "seeds: [1, 2]\n", "model: {load_in_4bit: true}\n", "loraplus_lr_ratio: 16\n", "method: base\n"],
)
def test_a_run_s_command_gives_the_run_that_was_planned(tmp_path, extra):
    file = tmp_path / "c.yaml"
    kept = SMALL_COMPARISON if "method" not in extra else SMALL_COMPARISON.replace("method: lora\n", "")
    file.write_text(kept + extra)
    overrides = ["lora.r=5", f"output_dir={tmp_path}/a: b", "arms.lora.training={warmup_steps: 1}"]
    config = load_config(file, overrides)
    for arm in comparing.plan_comparison(config):
        command = runner.run_command(file, overrides, arm)
        assert command[:6] == [sys.executable, "-m", "lora_hf", "train", "--config", str(file)]
        run = load_config(file, command[6:])
        assert run.for_run(run.method, run.seed, run.output_dir) == arm.config
        keys = [word.partition("=")[0] for word in command[6:]]
        assert len(keys) == len({*keys})  # a field that is given twice is a warning


@pytest.mark.parametrize("folder", ["runs/a #1", "runs/x: y", "runs/[1]", "runs/ü 'q' \"p\"", "runs/1e3"])
def test_no_folder_name_is_mistaken_for_yaml(tmp_path, folder):
    file = tmp_path / "c.yaml"
    file.write_text("method: lora\n")
    (arm,) = runner.plan_variant("lora", config_of(output_dir=folder), {})
    assert load_config(file, runner.run_command(file, (), arm)[6:]).output_dir == f"{folder}/lora"


def test_a_folder_that_holds_something_else_than_a_comparison_is_refused(tmp_path):
    arms = comparing.plan_comparison(config_of(output_dir=str(tmp_path)))
    for name in ("base", "lora", "lora-seed-9", "comparison.json"):
        (tmp_path / name).mkdir()
    groups = ("base", "lora", "full")
    runner.check_root(arms[0].config, groups, "comparison")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds \['thesis.tex'\] but no comparison") as refused:
        runner.check_root(arms[0].config, groups, "comparison")
    assert f"such as output_dir={tmp_path}-compared, or add overwrite=true to write beside" in str(
        refused.value
    )
    forced = comparing.plan_comparison(config_of(output_dir=str(tmp_path), overwrite=True))
    runner.check_root(forced[0].config, (), "comparison")
    with pytest.raises(UserError, match="is a file"):
        runner.check_root(config_of(output_dir=str(tmp_path / "thesis.tex/lora")), (), "comparison")


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(2)", 2), ("raise SystemExit(1)", 1)])
def test_the_exit_status_of_a_run_s_process_is_passed_on(code, status):
    with pytest.raises(RunFailed) as failed:
        runner.run_process([sys.executable, "-c", code])
    assert failed.value.status == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_to_the_current_run_which_ends_cleanly(tmp_path, number):
    code = f"""
import signal, sys, time, pathlib
def stop(n, frame):
    pathlib.Path({str(tmp_path / "got")!r}).write_text(str(n))
    sys.exit(130)
signal.signal({int(number)}, stop)
pathlib.Path({str(tmp_path / "up")!r}).touch()
time.sleep(30)
"""

    def interrupt():
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=interrupt).start()
    with pytest.raises(RunFailed) as failed:
        runner.run_process([sys.executable, "-c", code])
    assert failed.value.status == 130
    assert (tmp_path / "got").read_text() == str(int(number))
    assert signal.getsignal(number) is before
