"""Inputs of commands: real data beside the repository, and overrides that make a run short."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def shared_data(name: str) -> Path:
    """Return a folder of real data beside the repository, or skip the test if it is absent."""
    folder = SHARED_DATA / name
    if not folder.exists():
        pytest.skip(f"no real data: ../shared/data/{name}")
    return folder


FEW = """data.max_train_samples=40 data.max_eval_samples=3 data.max_test_samples=4 data.max_source_length=128
generation.max_new_tokens=5 training.per_device_train_batch_size=4 training.disable_tqdm=true
retention={}""".split()
"""Overrides with which a run of the embedded model takes seconds."""
SMALL_COMPARISON = """
method: lora
lora: {r: 16, lora_alpha: 32}
data: {max_train_samples: 40, max_eval_samples: 3, max_test_samples: 6, max_source_length: 128}
generation: {max_new_tokens: 5}
training: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1.0e-3, disable_tqdm: true}
arms: {full: {training: {learning_rate: 1.0e-4}}}
"""
"""The same as a config, with a learning rate for each run."""
