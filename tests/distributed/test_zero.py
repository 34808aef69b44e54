"""DeepSpeed's ZeRO by the configs of configs/accelerate: in two processes what one computes, and going on."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from support.launching import assert_same_run, command, kill_one_of_two, record
from support.warm_python import ROOT, WarmPython

APART = Path(sys.prefix) / "zero"
"""Folder of DeepSpeed: accelerate imports it in every run of an environment that has it."""
has_deepspeed = APART.is_dir() or importlib.util.find_spec("deepspeed") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_deepspeed, reason="DeepSpeed is not installed (make test-full does it)"),
]


PREPARE = """
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
"""
"""Without this, DeepSpeed compiles a collective for a minute that only its inference calls."""


@pytest.fixture(scope="module")
def zero_python():
    """Return an interpreter that has imported DeepSpeed too."""
    paths = os.pathsep.join(filter(None, [str(APART), str(ROOT), os.environ.get("PYTHONPATH")]))
    python = WarmPython(PREPARE, PYTHONPATH=paths, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    yield python
    python.close()


def environment(stage):
    """Environment that `accelerate launch --config_file` gives its processes; on a CPU it would start one."""
    words = ["--config_file", str(ROOT / f"configs/accelerate/zero{stage}.yaml"), "--use_deepspeed", "x.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return {k: v for k, v in prepare_deepspeed_cmd_env(args)[1].items() if k.startswith("ACCELERATE_")}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_compute_what_one_does_after_one_was_killed_too(one, tmp_path, zero_python, stage):
    env, two = environment(stage), tmp_path / "two"
    kill_one_of_two(zero_python, two, env)
    done = zero_python.run(command(two, 4, "-v"), env=env)
    assert done.returncode == 0 and "resuming from" in done.stderr, done.stderr
    assert_same_run(two, one)
    assert record(two)["processes"] == 2 and done.stdout.count("results: ") == 1
    assert ("weights are sharded" in done.stderr) == (stage == 3)
