"""Which faster ways a training takes, for as long as it lasts, and why not the others."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from accelerate.utils import TorchDynamoPlugin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from lora_hf.adapters.functional import cheap_masks
from lora_hf.fast.compiled import compiled
from lora_hf.fast.t5 import faster, has_plain_frozen_head, why_not

logger = logging.getLogger(__name__)


def is_sharded(trainer: Any) -> bool:
    """Whether no process holds the weights whole."""
    return bool(is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled)


def compiles_blocks(trainer: Any) -> bool:
    """Whether `torch_compile` is done here, block by block, and not by accelerate, for the whole model."""
    return bool(trainer.args.torch_compile and trainer.fast_paths and not is_sharded(trainer))


def leave_whole(trainer: Any) -> None:
    """Tell accelerate not to compile what it prepares."""
    trainer.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="no")


@contextmanager
def fastest(trainer: Any) -> Iterator[bool]:
    """Inside the block the trainer's model goes the faster ways; yields whether the loss needs no logits."""
    reason = _why_plain(trainer)
    logits = _why_logits(trainer) if reason is None else reason
    if reason and trainer.fast_paths:
        logger.info("no fast paths: %s", reason)
    elif logits and trainer.fast_paths:
        logger.info("the loss is had from all logits: %s", logits)
    args = trainer.args
    with ExitStack() as stack:
        # whose functions the compiler cannot trace
        stack.enter_context(cheap_masks(trainer.fast_paths and not args.torch_compile))
        if compiles_blocks(trainer):
            blocks = compiled(trainer.model, args.torch_compile_backend, args.torch_compile_mode)
            logger.info("torch_compile: %d blocks, as they are written plainly", stack.enter_context(blocks))
        elif reason is None:
            stack.enter_context(faster(trainer.model))
        yield logits is None


def without_cache(model: Any) -> dict[str, bool]:
    """What tells a model to keep no keys and values for a next token, which no training step asks for."""
    return {"use_cache": False} if "use_cache" in signature(type(model).forward).parameters else {}


def _why_plain(trainer: Any) -> str | None:
    if not trainer.fast_paths:
        return "not asked for"
    return "weights are sharded" if is_sharded(trainer) else why_not(trainer.model)


def _why_logits(trainer: Any) -> str | None:
    if trainer.label_smoother is not None:
        return "label smoothing needs them"
    return None if has_plain_frozen_head(trainer.model) else "the head trains, or is no plain linear layer"
