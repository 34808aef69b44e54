"""Runs in two processes, as torchrun starts them: what one process computes, whole files, orderly ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN = """train --config configs/quickstart.yaml data.max_train_samples=37 data.max_eval_samples=5
data.max_test_samples=7 data.max_source_length=96 generation.max_new_tokens=6 training.logging_steps=1
training.disable_tqdm=true training.save_steps=3 training.learning_rate=1e-3 training.max_steps=7
training.eval_strategy=steps training.eval_steps=6""".split()
"""7 steps: the last row of an epoch is a batch of its own, and the second epoch begins."""
ROWS = "training.per_device_train_batch_size"
pytestmark = pytest.mark.slow


def start(folder, rows, *more, processes=2, program=("-m", "lora_hf")):
    launcher = TORCHRUN if processes == 2 else [sys.executable]
    words = [*launcher, *program, *TRAIN, f"output_dir={folder}", f"{ROWS}={rows}", *more]
    known = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=known, **pipes)


def run(*words, **options):
    child = start(*words, **options)
    out, err = child.communicate(timeout=120)
    return child.returncode, out, err


def record(folder, name="results.json"):
    return json.loads((folder / name).read_text())


def logged(folder, key="loss"):
    return [line[key] for line in record(folder, "training.json")["log"] if key in line]


def assert_same_run(found, expected):
    assert logged(found) == pytest.approx(logged(expected), abs=1e-4) and len(logged(found)) == 7
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert record(found)[name] == pytest.approx(record(expected)[name], abs=1e-9)
    written, reference = (load_file(f / "adapter/adapter_model.safetensors") for f in (found, expected))
    assert written.keys() == reference.keys() and all(t.numel() for t in written.values())
    assert max(float((written[name] - reference[name]).abs().max()) for name in reference) < 1e-4
    ids = [[json.loads(line)["id"] for line in (f / "predictions.jsonl").open()] for f in (found, expected)]
    assert ids[0] == ids[1] and len(ids[0]) == 7


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    status, _, err = run(folder, 8, processes=1)
    assert status == 0, err
    return folder


def test_two_processes_compute_what_one_does_and_one_goes_on_where_one_of_two_was_killed(one, tmp_path):
    two = tmp_path / "two"
    child = start(two, 4)
    for line in child.stdout:
        if "'loss'" in line and (two / "checkpoints/checkpoint-3/rng_state_1.pth").exists():
            break
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(child.pid)], capture_output=True, text=True)
    os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
    out, err = child.communicate(timeout=60)
    assert child.returncode != 0 and not (two / "results.json").exists()
    assert "another process of this run has ended" in err or "SIGTERM: saving a checkpoint" in err
    status, _, err = run(two, 4, processes=1)  # half the batch: another run
    assert status == 2 and "per_device_train_batch_size x processes: 8 -> 4" in err
    status, _, err = run(two, 8, processes=1)
    assert status == 0 and "going on from" in err, err
    assert_same_run(two, one)
    assert record(two)["resumed_at_step"] >= 3 and record(two)["processes"] == 1


def test_two_processes_end_as_one_and_print_once(one, tmp_path):
    status, out, err = run(tmp_path / "two", 4)
    assert status == 0, err
    assert_same_run(tmp_path / "two", one)
    assert record(tmp_path / "two")["processes"] == 2
    assert out.count("results: ") == 1 and err.count("weights train") == 1
    ours = {"eval_rouge1", "eval_rougeLsum", "eval_words"}
    assert all(logged(tmp_path / "two", key) == pytest.approx(logged(one, key)) for key in ours)
    status, _, err = run(tmp_path / "two", 4, "lora.r=4")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(errors) == 1 and "lora.r: 16 -> 4" in errors[0]  # torchrun's own status


def test_fsdp2_holds_parts_and_computes_and_saves_what_one_process_does(tmp_path):
    words = [*TORCHRUN, "tests/several/sharded.py", str(tmp_path)]
    known = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=known, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = record(tmp_path, "record.json")
    assert seen["sharded"] and seen["same"] and len(seen["parts"]) == seen["number"]
    assert all(0 < held < whole for held, whole in seen["parts"])
    assert all(abs(sharded - plain) < 1e-4 for sharded, plain in seen["losses"])
    written, expected = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("sharded", "plain"))
    assert written.keys() == expected.keys()
    assert max(float((written[name] - expected[name]).abs().max()) for name in expected) < 1e-4


def test_other_commands_say_that_they_are_for_one_process():
    known = os.environ | {"RANK": "0", "WORLD_SIZE": "2"}
    words = [sys.executable, "-m", "lora_hf", "compare", "--config", "configs/quickstart.yaml"]
    done = subprocess.run(words, cwd=ROOT, env=known, capture_output=True, text=True)
    assert done.returncode == 2 and "lora-hf compare is for one process, and there are 2" in done.stderr
