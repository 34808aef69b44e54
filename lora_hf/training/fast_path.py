"""Which faster ways a training takes, for as long as it lasts, and why not the others."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from accelerate.utils import TorchDynamoPlugin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from lora_hf.adapters.functional import cheap_masks
from lora_hf.config.training import asks_to_compile
from lora_hf.fast.compiled import as_written, compiled
from lora_hf.fast.t5 import faster, has_plain_frozen_head, why_not

logger = logging.getLogger(__name__)


def is_sharded(trainer: Any) -> bool:
    """Whether no process holds the weights whole."""
    return bool(is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled)


@contextmanager
def fastest(trainer: Any) -> Iterator[bool]:
    """Inside the block the trainer's model goes the faster ways; yields whether the loss needs no logits."""
    args = trainer.args
    compiles = asks_to_compile(vars(args))
    whole = _why_whole(trainer) if compiles else None
    plain = f"torch_compile takes the model whole: {whole}" if whole else _why_plain(trainer)
    logits = _why_logits(trainer) if plain is None else plain
    if plain and trainer.fast_paths:
        logger.info("no fast paths: %s", plain)
    elif logits and trainer.fast_paths:
        logger.info("the loss is had from all logits: %s", logits)
    with ExitStack() as stack:
        # whose functions the compiler cannot trace
        stack.enter_context(cheap_masks(trainer.fast_paths and not compiles))
        if compiles and whole is None:
            stack.enter_context(_left_whole(trainer))
            stack.enter_context(compiled(trainer.model, args.torch_compile_backend, args.torch_compile_mode))
        elif plain is None:
            stack.enter_context(faster(trainer.model))
        yield logits is None


@contextmanager
def uncompiled(trainer: Any) -> Iterator[None]:
    """Inside the block an evaluation runs as the model is written, where its blocks are what is compiled."""
    if not asks_to_compile(vars(trainer.args)) or _why_whole(trainer):
        yield
        return
    with _left_whole(trainer), as_written():
        yield


@contextmanager
def _left_whole(trainer: Any) -> Iterator[None]:
    """Accelerate compiles nothing that it prepares; what it was told is every trainer's of this process."""
    state = trainer.accelerator.state
    told, state.dynamo_plugin = state.dynamo_plugin, TorchDynamoPlugin(backend="no")
    try:
        yield
    finally:
        state.dynamo_plugin = told


def without_cache(model: Any) -> dict[str, bool]:
    """What tells a model to keep no keys and values for a next token, which no training step asks for."""
    return {"use_cache": False} if "use_cache" in signature(type(model).forward).parameters else {}


def _why_whole(trainer: Any) -> str | None:
    """Why `torch_compile` is left to accelerate, or None where the blocks are compiled."""
    args = trainer.args
    if not trainer.fast_paths:
        return "fast_paths is false"
    if is_sharded(trainer):
        return "weights are sharded"
    if args.gradient_checkpointing or getattr(args, "activation_checkpointing", False):
        return "what is computed again leaves no graph of a block"
    return "DataParallel copies it" if args.n_gpu > 1 else None


def _why_plain(trainer: Any) -> str | None:
    if not trainer.fast_paths:
        return "not asked for"
    return "weights are sharded" if is_sharded(trainer) else why_not(trainer.model)


def _why_logits(trainer: Any) -> str | None:
    if trainer.label_smoother is not None:
        return "label smoothing needs them"
    return None if has_plain_frozen_head(trainer.model) else "the head trains, or is no plain linear layer"
