"""Comparisons as a person starts them: real processes, each arm in its own.

They are forks of `warm_python`, the arms too; `test_quickstart.py` starts a comparison whose processes each
import everything.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.inputs import SMALL_COMPARISON

from lora_hf.run_files import RESULTS

pytestmark = pytest.mark.slow


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(SMALL_COMPARISON + f"output_dir: {tmp_path / 'run'}\n")
    return file


def stamps(root):
    return {p.parent.name: p.stat().st_mtime_ns for p in root.rglob(RESULTS)}


def test_the_script_runs_each_arm_in_a_process_of_its_own_and_reuses_them(config_file, warm_python):
    root = config_file.parent / "run"

    def script(*overrides):
        return warm_python.run(["scripts/compare.py", "--config", config_file, *overrides])

    done = script()
    assert done.returncode == 0, done.stderr
    assert "ROUGE-Lsum" in done.stdout and f"report: {root}" in done.stdout.replace("\n", "")
    held = {str(p.relative_to(root)) for p in root.glob("*/*")}
    trained = {
        "checkpoints",
        "config.yaml",
        "inputs.json",
        "predictions.jsonl",
        "results.json",
        "training.json",
    }
    for arm, own in (("base", set()), ("full", {"model"}), ("lora", {"adapter"})):
        names = trained - ({"checkpoints", "training.json"} if arm == "base" else set())
        assert {name for name in held if name.startswith(arm)} == {f"{arm}/{name}" for name in names | own}
    before = stamps(root)
    assert script().returncode == 0
    assert stamps(root) == before
    refused = script("lora.r=4")
    (error,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert refused.returncode == 2 and "lora.r: 16 -> 4" in error
    assert stamps(root) == before
    assert script("lora.r=4", "overwrite=true").returncode == 0
    after = stamps(root)
    assert [name for name in before if after[name] != before[name]] == ["lora"]


def test_ctrl_c_stops_a_comparison_in_its_arm_and_the_same_command_ends_it(config_file, warm_python):
    root = config_file.parent / "run"
    words = ["-m", "lora_hf", "compare", "--config", str(config_file)]
    words += ["training.max_steps=80", "training.logging_steps=1", "arms.full.training.max_steps=2"]
    child = warm_python.start(words)
    for line in child.stderr:
        if ": loss " in line:
            break
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130 and "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("interrupted: stopped after")]) == 1
    assert list((root / "lora" / "checkpoints").iterdir()) and not (root / "full").exists()
    assert warm_python.run(words).returncode == 0
    record = json.loads((root / "comparison.json").read_text())["arms"]["lora"]
    assert record["resumed_at_step"] > 0 and record["steps"] == 80


@pytest.mark.timeout(1800)  # on a busy machine
@pytest.mark.parametrize("verb, arm", [("compare", "lora"), ("sweep", "r-2")])
def test_a_study_whose_process_is_killed_goes_on_where_it_was(verb, arm, config_file, warm_python):
    """SIGKILL of the parent alone: its arm stops by itself, and the same command, at once, takes it up."""
    root = config_file.parent / "run"
    own = ["training.max_steps=40", "training.save_strategy=steps", "training.save_steps=5"]
    own += ["arms.full.training.max_steps=2"]
    if verb == "sweep":
        own += ["sweep.space={lora: {r: [2]}}", "training.eval_strategy=steps", "training.eval_steps=20"]
    words = ["-m", "lora_hf", verb, "--config", str(config_file), *own]
    parent = warm_python.start(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (root / arm / "checkpoints" / "checkpoint-10").exists():
        assert parent.poll() is None
        time.sleep(0.005)
    parent.kill()
    parent.wait()
    before = stamps(root)
    done = warm_python.run(words)
    assert done.returncode == 0, done.stderr
    assert list(before) == ["base"] and stamps(root)["base"] == before["base"]
    record = json.loads((root / arm / RESULTS).read_text())
    assert 10 <= record["resumed_at_step"] < 40 and record["steps"] == 40
    if verb == "compare":
        whole = [*words[:2], "train", *words[3:], f"output_dir={root.parent / 'whole'}"]
        assert warm_python.run(whole).returncode == 0
        weights = Path("adapter") / "adapter_model.safetensors"
        assert (root / arm / weights).read_bytes() == (root.parent / "whole" / weights).read_bytes()


def test_an_arms_peak_memory_does_not_begin_at_its_parents():
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc: getrusage is all there is")
    code = """
import subprocess, sys
held = b"x" * 2**30
inner = "import torch; from lora_hf.system import peak_memory_mib as p; print(p(torch.device('cpu')))"
print(subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 100 < float(done.stdout) < 1000


def test_the_study_s_script_runs_each_variant_in_a_process_of_its_own_and_reuses_them(
    config_file, warm_python
):
    with config_file.open("a") as file:
        file.write("variants: {base: {method: base}, lora: {}, houlsby: {method: bottleneck}}\n")
    words = ["scripts/methods.py", "--config", config_file]
    root, written = config_file.parent / "run", []
    for _ in range(2):
        done = warm_python.run(words)
        assert done.returncode == 0, done.stderr
        assert "houlsby" in done.stdout and {"methods.md", "methods.png"} <= {p.name for p in root.iterdir()}
        written.append(stamps(root))
    assert written[0] == written[1] and set(written[0]) == {"base", "lora", "houlsby"}
    memory = json.loads((root / "methods.json").read_text())["variants"]
    assert all(record["peak_memory_mib"] > 100 for record in memory.values())
