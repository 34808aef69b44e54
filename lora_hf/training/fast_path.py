"""The fast path during training: which parts of it apply, and why the others do not."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from accelerate.utils import TorchDynamoPlugin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from lora_hf.adapters.functional import fast_branches
from lora_hf.adapters.wrappers import unwrapped
from lora_hf.config.training import asks_to_compile
from lora_hf.errors import UserError
from lora_hf.families import family_of
from lora_hf.fast.compiled import as_written, compiled
from lora_hf.fast.t5 import faster, has_plain_frozen_head, why_not, why_not_float16

logger = logging.getLogger(__name__)


def shards_weights(trainer: Any) -> bool:
    """Return whether no process holds the weights whole."""
    return bool(is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled)


@contextmanager
def fast_training(trainer: Any) -> Iterator[bool]:
    """Inside the block, the trainer's model uses its fast path.

    Yields:
        Whether the loss can be computed without holding the logits.
    """
    args = trainer.args
    compiles = asks_to_compile(vars(args))
    compiled_whole = _why_compiled_whole(trainer) if compiles else None
    if compiled_whole:
        reference: str | None = f"torch_compile compiles the model as a whole: {compiled_whole}"
    else:
        reference = _why_reference_path(trainer)
    all_logits = reference or _why_all_logits(trainer)
    if reference and trainer.fast_paths:
        logger.debug("fast path is off: %s", reference)
    elif all_logits and trainer.fast_paths:
        logger.debug("memory-saving loss is off: %s", all_logits)
    with ExitStack() as stack:
        stack.enter_context(
            fast_branches(trainer.fast_paths and not compiles)
        )  # the compiler cannot trace them
        if compiles and compiled_whole is None:
            stack.enter_context(_accelerate_compiles_nothing(trainer))
            backend, mode = args.torch_compile_backend, args.torch_compile_mode
            stack.enter_context(compiled(trainer.model, backend, mode, trainer.compiles_by_default))
        elif reference is None:
            stack.enter_context(faster(trainer.model))
        yield all_logits is None


@contextmanager
def uncompiled(trainer: Any) -> Iterator[None]:
    """Inside the block, blocks that training compiles run uncompiled, as an evaluation needs them."""
    if not compiles_blocks(trainer):
        yield
        return
    with _accelerate_compiles_nothing(trainer), as_written():
        yield


@contextmanager
def _accelerate_compiles_nothing(trainer: Any) -> Iterator[None]:
    """Inside the block, accelerate compiles nothing that it prepares; its state is shared by all trainers."""
    state = trainer.accelerator.state
    before, state.dynamo_plugin = state.dynamo_plugin, TorchDynamoPlugin(backend="no")
    try:
        yield
    finally:
        state.dynamo_plugin = before


def compiles_blocks(trainer: Any) -> bool:
    """Return whether a training compiles the model's blocks one by one."""
    return asks_to_compile(vars(trainer.args)) and _why_compiled_whole(trainer) is None


def without_cache(model: Any) -> dict[str, bool]:
    """Return the keyword that makes a model keep no keys and values, which no training step reads."""
    return {"use_cache": False} if "use_cache" in signature(type(model).forward).parameters else {}


def _why_compiled_whole(trainer: Any) -> str | None:
    """Return why accelerate compiles the whole model, or None if its blocks are compiled one by one."""
    args = trainer.args
    if not trainer.fast_paths:
        return "fast_paths is false"
    if shards_weights(trainer):
        return "the weights are sharded"
    if args.gradient_checkpointing or getattr(args, "activation_checkpointing", False):
        return "recomputed activations break the graph of a block"
    return None


def check_float16(trainer: Any) -> None:
    """Refuse autocast to float16 for a family that overflows in it, where nothing prevents that.

    Raises:
        UserError: the reference path is taken, or the fast path does not keep this model within the range.
    """
    args, model = trainer.args, unwrapped(trainer.model)
    if not args.fp16 or not family_of(model).overflows_float16:
        return
    reason = "torch_compile is on" if asks_to_compile(vars(args)) else _why_reference_path(trainer)
    if reason := reason or why_not_float16(model):
        raise UserError(
            f"training.fp16=true: feed-forward layers of {model.config.model_type} overflow in float16, and "
            f"here the fast path does not prevent it: {reason}. Leave fp16 out",
            "fp16",
        )


def _why_reference_path(trainer: Any) -> str | None:
    if not trainer.fast_paths:
        return "fast_paths is false"
    return "the weights are sharded" if shards_weights(trainer) else why_not(trainer.model)


def _why_all_logits(trainer: Any) -> str | None:
    if trainer.compute_loss_func is not None:
        return "a loss function was given, which reads them"
    if trainer.label_smoother is not None:
        return "label smoothing needs all logits"
    model = unwrapped(trainer.model)
    if not type(model).forward.__module__.startswith("transformers."):
        return f"{type(model).__name__} has a forward of its own"
    if not model.config.return_dict:
        return "the model returns tuples (return_dict is off)"
    if has_plain_frozen_head(trainer.model):
        return None
    return "the output head is trainable, or not a linear layer"
