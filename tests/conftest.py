"""Fixtures that tests of several folders use."""

import gc
import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from support.models import TOKENS, make_t5
from support.warm_python import WarmPython
from transformers import (
    T5ForConditionalGeneration,
)

pytest_plugins = ["hub.fixtures", "support.launching"]  # hub, client, trained


@pytest.fixture(autouse=True, scope="module")
def old_objects_out_of_the_collector_s_way():
    """What was made before, by imports above all, is not looked through again.

    A training begins with a full collection (accelerate's `free_memory`), which over all of PyTorch's and
    Transformers' objects takes longer than the training of a tiny model.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def loggers_as_they_begin():
    """A command in this process takes our lines to standard error, and caplog would miss them after it.

    At each test's beginning, for fixtures of a module run commands too; and alembic disables loggers.
    """
    ours = logging.getLogger("lora_hf")
    ours.setLevel(logging.NOTSET)
    ours.propagate, ours.handlers = True, []
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("lora_hf") and isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture(scope="session")
def warm_python():
    """Start commands as real processes without paying for their imports each time."""
    python = WarmPython()
    yield python
    python.close()


@pytest.fixture
def t5() -> T5ForConditionalGeneration:
    return make_t5()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three rows of 11 input tokens and 7 labels, with padding in both."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, TOKENS, (3, 11), generator=generator)
    labels = torch.randint(3, TOKENS, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 8:], labels[1, 5:] = 0, -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


@pytest.fixture
def runs_in_this_process(monkeypatch):
    """Arms run by the same command line, without the seconds that a process of their own takes to start."""
    import signal
    import sys

    from lora_hf import cli
    from lora_hf.errors import RunFailed
    from lora_hf.experiments import runner as study

    commands = []

    def run_process(command):
        assert command[:4] == [sys.executable, "-m", "lora_hf", "train"]
        commands.append(command)
        status = cli.run(command[3:], debug=False)
        if status:
            raise RunFailed(status)

    monkeypatch.setattr(study, "run_process", run_process)
    before = signal.getsignal(signal.SIGTERM)
    yield commands
    signal.signal(signal.SIGTERM, before)
