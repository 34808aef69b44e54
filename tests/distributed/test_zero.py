"""DeepSpeed's ZeRO by the configs of configs/accelerate: in two processes what one computes, and going on."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from support.launching import ROOT, assert_same_run, kill_one_of_two, record, run

APART = Path(sys.prefix) / "zero"
"""Folder of DeepSpeed: accelerate imports it in every run of an environment that has it."""
has_deepspeed = APART.is_dir() or importlib.util.find_spec("deepspeed") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_deepspeed, reason="DeepSpeed is not installed (make test-full does it)"),
]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Folder in which DeepSpeed compiles its collectives; a killed build leaves a lock there."""
    return tmp_path_factory.mktemp("extensions")


def environment(stage, built):
    """Environment that `accelerate launch --config_file` gives its processes; on a CPU it would start one."""
    words = ["--config_file", str(ROOT / f"configs/accelerate/zero{stage}.yaml"), "--use_deepspeed", "x.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    expected = {k: v for k, v in prepare_deepspeed_cmd_env(args)[1].items() if k.startswith("ACCELERATE_")}
    paths = {name: os.environ.get(name, "").split(os.pathsep) for name in ("PYTHONPATH", "PATH")}
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(APART), *paths["PYTHONPATH"]])),
        "PATH": os.pathsep.join([str(APART / "bin"), *paths["PATH"]]),  # ninja
        "TORCH_EXTENSIONS_DIR": str(built),
        "DS_ACCELERATOR": "cpu",
    }
    return expected | own


@pytest.mark.timeout(400)
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_compute_what_one_does_after_one_was_killed_too(one, tmp_path, built, stage):
    env, two = environment(stage, built), tmp_path / "two"
    kill_one_of_two(two, env)
    status, out, err = run(two, 4, "-v", env=env)
    assert status == 0 and "resuming from" in err, err
    assert_same_run(two, one)
    assert record(two)["processes"] == 2 and out.count("results: ") == 1
    assert ("weights are sharded" in err) == (stage == 3)
