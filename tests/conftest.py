"""Models built from configs, small enough to train in a test, with the shapes and quirks of the real ones."""

import gc
import logging
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)
from warm_python import WarmPython

pytest_plugins = ["hub_fixtures", "several.launching"]  # hub, client, trained
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
TOKENS = 96


def shared_data(name: str) -> Path:
    """A folder of real data beside the repository; the test is skipped where it is absent."""
    folder = SHARED_DATA / name
    if not folder.exists():
        pytest.skip(f"real data not at hand: ../shared/data/{name}")
    return folder


FEW = """data.max_train_samples=40 data.max_eval_samples=3 data.max_test_samples=4 data.max_source_length=128
generation.max_new_tokens=5 training.per_device_train_batch_size=4 training.disable_tqdm=true""".split()
"""Overrides of a run of the embedded model that takes seconds."""
SMALL_COMPARISON = """
method: lora
lora: {r: 16, lora_alpha: 32}
data: {max_train_samples: 40, max_eval_samples: 3, max_test_samples: 6, max_source_length: 128}
generation: {max_new_tokens: 5}
training: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1.0e-3, disable_tqdm: true}
arms: {full: {training: {learning_rate: 1.0e-4}}}
"""
"""The same as a config, with a rate for each arm."""

T5_SHAPE = {
    "vocab_size": TOKENS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 3,  # heads * d_kv = 24 != d_model, as in FLAN-T5-small: in_features != out_features
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}


def untie_head(model: torch.nn.Module) -> None:
    """Give lm_head a matrix of its own, as FLAN-T5's checkpoints have: T5 built from a config ties it."""
    torch.manual_seed(7)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
    model.config.tie_word_embeddings = False


def make_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**T5_SHAPE))
    untie_head(model)
    return model.eval()


def make_mt5() -> MT5ForConditionalGeneration:
    torch.manual_seed(0)
    return MT5ForConditionalGeneration(MT5Config(**T5_SHAPE)).eval()


def make_umt5() -> UMT5ForConditionalGeneration:
    torch.manual_seed(0)
    return UMT5ForConditionalGeneration(UMT5Config(**T5_SHAPE)).eval()


def make_bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    shape = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 48))
    }
    config = BartConfig(vocab_size=TOKENS, d_model=32, max_position_embeddings=64, dropout=0.0, **shape)
    return BartForConditionalGeneration(config).eval()


MODELS = {
    "t5": (make_t5, ("q", "v")),
    "mt5": (make_mt5, ("q", "v")),
    "bart": (make_bart, ("q_proj", "v_proj")),
}


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


def randomize(model: torch.nn.Module, seed: int = 1) -> None:
    """Give the adapters weights that do something: B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture
def arms_in_this_process(monkeypatch):
    """Arms run by the same command line, without the seconds that a process of their own takes to start."""
    import signal
    import sys

    from lora_hf import cli
    from lora_hf.errors import ArmFailed
    from lora_hf.runs import study

    commands = []

    def run_process(command):
        assert command[:4] == [sys.executable, "-m", "lora_hf", "train"]
        commands.append(command)
        status = cli.run(command[3:], debug=False)
        if status:
            raise ArmFailed(status)

    monkeypatch.setattr(study, "run_process", run_process)
    before = signal.getsignal(signal.SIGTERM)
    yield commands
    signal.signal(signal.SIGTERM, before)
