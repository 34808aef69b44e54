"""A run under the system's own limit of memory, in a process of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIMITED = """
import json, re, resource, sys, threading, time
from lora_hf import cli
sys.modules |= dict.fromkeys(cli.HIDDEN)  # as the command does
limit, peak = int(sys.argv[1]), 0
def data():
    return int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def watch():
    global peak
    while True:
        peak = max(peak, data())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
status = cli.run(sys.argv[2:], debug=False)
print(peak)
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_run_finishes_in_less_memory_than_its_batch_needs(tmp_path: Path) -> None:
    """The operating system's own limit, set between what a batch of 128 takes and what two of 64 take."""

    def train(name: str, limit: int = 0, **training: Any) -> tuple[subprocess.CompletedProcess, list[float]]:
        fields = {
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": "true",
            **training,
        }
        words = [
            sys.executable,
            "-c",
            LIMITED,
            str(limit),
            "train",
            "--config",
            "quickstart",
            "fast_paths=false",
        ]
        words += ["data.max_train_samples=128", "data.max_eval_samples=3", "data.max_test_samples=4"]
        words += ["retention={}", "generation.max_new_tokens=5", f"output_dir={tmp_path / name}"]
        words += [f"training.{field}={value}" for field, value in fields.items()]
        done = subprocess.run(words, capture_output=True, text=True)
        results = tmp_path / name / "results.json"
        log = json.loads(results.read_text())["log"] if results.exists() else []
        return done, [entry["loss"] for entry in log if "loss" in entry]

    whole, losses_whole = train("whole", per_device_train_batch_size=128)
    small, losses_small = train("small", per_device_train_batch_size=32, gradient_accumulation_steps=4)
    peaks = [int(done.stdout.splitlines()[-1]) for done in (whole, small)]
    assert peaks[0] - peaks[1] > 300 * 2**20
    # A batch of 64 lies a third of the way up. Close to it, whether it fits depends on the allocator, and a
    # run that has just enough for the step may lack it for what comes after.
    limit = peaks[1] + (peaks[0] - peaks[1]) * 2 // 3
    refused, _ = train("refused", limit, per_device_train_batch_size=128)
    assert refused.returncode == 2 and re.search("error: step [12]: out of memory", refused.stderr)
    halved, losses_halved = train(
        "halved", limit, per_device_train_batch_size=128, auto_find_batch_size="true"
    )
    assert halved.returncode == 0
    assert re.search("step [12]: out of memory with 128 dialogues at a time; .* 64", halved.stderr)
    assert losses_halved == pytest.approx(losses_small, abs=1e-4)
    assert losses_halved == pytest.approx(losses_whole, abs=1e-4)
    assert len(losses_halved) == 2
