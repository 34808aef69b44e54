"""Bytes that a training step holds beside weights, gradients and optimizer states."""

import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import T5Config

from lora_hf.config import RunConfig
from lora_hf.errors import UserError
from lora_hf.fast.loss import chunked_cross_entropy
from lora_hf.fast.t5 import faster, has_plain_frozen_head, why_not, without_head
from lora_hf.models.flan_t5 import COMMON
from lora_hf.planning.fake_model import outline, repeated_blocks
from lora_hf.planning.memory_tracker import LiveBytes, most_held

logger = logging.getLogger(__name__)
FEW = (2, 3)
"""Numbers of layers to trace on a frozen base: each further layer holds as much as the third."""
PRIMES: dict[str, Any] = {"d_model": 1_000_003, "d_ff": 1_000_033, "num_heads": 1_000_037}
"""Widths that no other dimension is a multiple of, so that the bytes of a tensor show its widths."""


class NotCounted(Exception):
    """A step cannot be traced without values, such as those by which tokens are sent to experts."""


class Batch(NamedTuple):
    """Size of a step's input: dialogues, tokens of the longest dialogue, tokens of the longest summary."""

    dialogues: int
    source: int
    target: int


def activation_bytes(config: RunConfig, settings: Any, dtype: torch.dtype, batch: Batch, fast: bool) -> int:
    """Return the peak bytes of a step's forward and backward beside the weights and their gradients.

    Args:
        config: the run; its method adds weights or trains all of them.
        settings: configuration of the architecture.
        dtype: dtype of the base's weights.
        batch: size of one forward's input.
        fast: whether the CPU's fast paths are used, rather than the reference path, as on a GPU.

    Raises:
        NotCounted: the steps of this family depend on values.
    """
    # of a full fine-tuning, the moment of the peak depends on the number of layers
    blocks = None if config.method == "full" else repeated_blocks(settings)
    if blocks is not None and blocks > FEW[1]:
        with suppress(UserError):  # a target or a pattern names a later block
            few, more = (_traced(config, settings, dtype, batch, fast, layers) for layers in FEW)
            return _of_all_layers(few, more, blocks)
    return _traced(config, settings, dtype, batch, fast, None)


def flan_t5_bytes(config: RunConfig, dtype: torch.dtype, batch: Batch) -> Callable[[dict[str, int]], int]:
    """Return a function from an entry of `SIZES` to its `activation_bytes` on the reference path.

    All FLAN-T5 take the same steps on tensors of different widths. So a step with a given number of layers is
    traced once, with `PRIMES` as widths, which the widths of each size then replace.
    """
    wide = T5Config(**COMMON, **PRIMES)

    @cache
    def changes(layers: int) -> list[int]:
        return _changes(config, wide, dtype, batch, False, layers)

    def held(shape: dict[str, int], layers: int) -> int:
        return most_held(_with_widths(change, shape) for change in changes(layers))

    def bytes_of(shape: dict[str, int]) -> int:
        if config.method == "full":
            return held(shape, shape["num_layers"])
        few, more = (held(shape, layers) for layers in FEW)
        return _of_all_layers(few, more, shape["num_layers"])

    return bytes_of


def _with_widths(change: int, shape: dict[str, int]) -> int:
    for name, prime in PRIMES.items():
        while change and change % prime == 0:
            change = change // prime * shape[name]
    return change


def _of_all_layers(few: int, more: int, layers: int) -> int:
    return few + (more - few) * (layers - FEW[0])


def _traced(
    config: RunConfig, settings: Any, dtype: torch.dtype, batch: Batch, fast: bool, n: int | None
) -> int:
    return most_held(_changes(config, settings, dtype, batch, fast, n))


def _changes(
    config: RunConfig, settings: Any, dtype: torch.dtype, batch: Batch, fast: bool, n: int | None
) -> list[int]:
    """Return the bytes of each tensor in the order in which a step of `n` layers allocates and frees them."""
    with (
        outline(config, settings, dtype, n) as model,
        LiveBytes(model.state_dict(keep_vars=True).values()) as live,
    ):
        for parameter in model.parameters():
            if parameter.requires_grad:  # gradients are counted by themselves
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        ids = torch.ones(batch.dialogues, batch.source, dtype=torch.long)
        labels = torch.ones(batch.dialogues, batch.target, dtype=torch.long)
        is_half = dtype in (torch.bfloat16, torch.float16)
        with (
            torch.autocast("cpu", dtype=dtype) if is_half else nullcontext(),
            faster(model) if fast and not why_not(model) else nullcontext(),
        ):
            _backpropagate(model, ids, labels, fast)
        return list(live.changes)


def _backpropagate(model: Any, ids: Tensor, labels: Tensor, fast: bool) -> None:
    try:
        _loss(model, ids, labels, fast).backward()
    except Exception as error:  # whatever a forward does with values that fake tensors do not have
        kind = model.config.model_type
        logger.debug("no step of %s on fake tensors", kind, exc_info=error)
        raise NotCounted(
            f"activations are not counted for this family, {kind}: its steps depend on values"
        ) from error


def _loss(model: Any, ids: Tensor, labels: Tensor, fast: bool) -> Tensor:
    if not (fast and not why_not(model) and has_plain_frozen_head(model)):
        # Transformers switches the cache off where activations are computed again, and would warn of that
        options = {"use_cache": False} if model.is_gradient_checkpointing else {}
        loss: Tensor = model(input_ids=ids, decoder_input_ids=labels, labels=labels, **options).loss
        return loss
    with without_head(model) as head:
        hidden = model(input_ids=ids, decoder_input_ids=labels, use_cache=False).logits
    return chunked_cross_entropy(hidden, head, labels)


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
