"""Runs of two processes started by torchrun, and their comparison with a run of one process."""

import json
import os
import signal
import subprocess

import pytest

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN = """train --config configs/quickstart.yaml data.max_train_samples=9 data.max_eval_samples=5
data.max_test_samples=7 data.max_source_length=96 generation.max_new_tokens=6 training.logging_steps=1
training.disable_tqdm=true training.save_steps=3 training.learning_rate=1e-3 training.max_steps=7
training.eval_strategy=steps training.eval_steps=6 retention={}""".split()
"""7 steps, two in an epoch, whose last batch has one row. The checkpoint of step 3 is in the second epoch."""
ROWS = "training.per_device_train_batch_size"


def command(folder, rows, *more, processes=2):
    """Return the words after `python` of a run, which each process gives so many rows of a batch."""
    launcher = TORCHRUN if processes == 2 else []
    return [*launcher, "-m", "lora_hf", *TRAIN, f"output_dir={folder}", f"{ROWS}={rows}", *more]


def record(folder, name="results.json"):
    return json.loads((folder / name).read_text())


def logged(folder, key="loss"):
    return [line[key] for line in record(folder, "training.json")["log"] if key in line]


def assert_same_run(found, expected):
    import torch  # here, as `conftest.py` reads this file in a process that runs no test
    from safetensors.torch import load_file

    assert logged(found) == pytest.approx(logged(expected), abs=1e-4) and len(logged(found)) == 7
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert record(found)[name] == pytest.approx(record(expected)[name], abs=1e-9)
    written, reference = (load_file(f / "adapter/adapter_model.safetensors") for f in (found, expected))
    assert written.keys() == reference.keys() and all(t.numel() for t in written.values())
    apart = [(written[name] - reference[name]).abs().flatten() for name in reference]
    # Adam moves a weight whose gradient is rounding noise by its whole rate: two of 49,152 under ZeRO-3
    assert (torch.cat(apart) > 1e-4).float().mean() < 1e-4
    ids = [[json.loads(line)["id"] for line in (f / "predictions.jsonl").open()] for f in (found, expected)]
    assert ids[0] == ids[1] and len(ids[0]) == 7


def kill_one_of_two(python, folder, env=None):
    """Start a run, kill one of its processes after the first checkpoint, and return the launcher's output."""
    child = python.start(command(folder, 4), env=env)
    for line in child.stderr:
        if ": loss " in line and (folder / "checkpoints/checkpoint-3/rng_state_1.pth").exists():
            break
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(child.pid)], capture_output=True, text=True)
    os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
    _, err = child.communicate()
    assert child.returncode != 0 and not (folder / "results.json").exists()
    assert "another process of this run has ended" in err or "SIGTERM: saving a checkpoint" in err


@pytest.fixture(scope="session")
def one(tmp_path_factory, warm_python):
    """Return the folder of a run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    done = warm_python.run(command(folder, 8, processes=1))
    assert done.returncode == 0, done.stderr
    return folder
