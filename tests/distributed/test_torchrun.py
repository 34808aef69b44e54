"""Runs in two processes, as torchrun starts them: what one process computes, whole files, orderly ends."""

import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from support.launching import TORCHRUN, assert_same_run, command, kill_one_of_two, logged, record
from support.warm_python import ROOT

pytestmark = pytest.mark.slow


def test_two_processes_equal_one_and_one_or_two_resume_where_two_were_killed(one, tmp_path, warm_python):
    two, again = tmp_path / "two", tmp_path / "again"
    kill_one_of_two(warm_python, two)
    shutil.copytree(two, again)
    done = warm_python.run(command(again, 4))
    assert done.returncode == 0 and "resuming from" in done.stderr, done.stderr
    assert_same_run(again, one)
    done = warm_python.run(command(two, 4, processes=1))  # half the batch: another run
    assert done.returncode == 2 and "per_device_train_batch_size x processes: 8 -> 4" in done.stderr
    done = warm_python.run(command(two, 8, processes=1))
    assert done.returncode == 0 and "resuming from" in done.stderr, done.stderr
    assert_same_run(two, one)
    assert record(two)["resumed_at_step"] >= 3 and record(two)["processes"] == 1


def test_two_processes_end_as_one_and_print_once(one, tmp_path, warm_python):
    """The first launch imports everything in each process, as a person's does; the others are forks."""
    words = [sys.executable, *command(tmp_path / "two", 4)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "two", one)
    assert record(tmp_path / "two")["processes"] == 2
    assert done.stdout.count("results: ") == 1 and done.stderr.count("parameters are trainable") == 1
    ours = {"eval_rouge1", "eval_rougeLsum", "eval_words"}
    assert all(logged(tmp_path / "two", key) == pytest.approx(logged(one, key)) for key in ours)
    done = warm_python.run(command(tmp_path / "two", 4, "lora.r=4"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "lora.r: 16 -> 4" in errors[0]
    assert done.returncode == 1  # torchrun's own status


def test_two_processes_stream_as_one_does(tmp_path, warm_python):
    for processes in (1, 2):
        words = command(tmp_path / str(processes), 8 // processes, "data.streaming=true", processes=processes)
        done = warm_python.run(words)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "2", tmp_path / "1")


def test_fsdp2_holds_parts_and_computes_and_saves_what_one_process_does(tmp_path, warm_python):
    words = [*TORCHRUN, "tests/support/sharded.py", tmp_path]
    done = warm_python.run(words, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"})
    assert done.returncode == 0, done.stderr
    seen = record(tmp_path, "record.json")
    assert seen["sharded"] and seen["same"] and len(seen["parts"]) == seen["number"]
    assert all(0 < held < whole for held, whole in seen["parts"])
    assert all(abs(sharded - plain) < 1e-4 for sharded, plain in seen["losses"])
    written, expected = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("sharded", "plain"))
    assert written.keys() == expected.keys()
    assert max(float((written[name] - expected[name]).abs().max()) for name in expected) < 1e-4


def test_commands_for_one_process_refuse_several():
    known = os.environ | {"RANK": "0", "WORLD_SIZE": "2"}
    words = [sys.executable, "-m", "lora_hf", "compare", "--config", "configs/quickstart.yaml"]
    done = subprocess.run(words, cwd=ROOT, env=known, capture_output=True, text=True)
    assert (
        done.returncode == 2 and "lora-hf compare runs in a single process, but 2 were started" in done.stderr
    )
