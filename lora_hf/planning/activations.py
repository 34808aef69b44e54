"""Bytes that a training step, and writing summaries, hold beside weights, gradients and optimizer states."""

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import T5Config
from transformers.trainer_pt_utils import LabelSmoother

from lora_hf.adapters.functional import planned_for
from lora_hf.config import RunConfig
from lora_hf.errors import UserError
from lora_hf.fast.loss import chunked_cross_entropy
from lora_hf.fast.t5 import faster, has_plain_frozen_head, why_not, without_head
from lora_hf.models.flan_t5 import COMMON
from lora_hf.planning.cuda_kernels import cuda_kernels
from lora_hf.planning.fake_model import outline, repeated_blocks
from lora_hf.planning.memory_tracker import LiveBytes, most_held
from lora_hf.training.fast_path import without_cache

logger = logging.getLogger(__name__)
FEW = (2, 3)
"""Numbers of layers to trace on a frozen base: each further layer holds as much as the third."""
PRIMES: dict[str, Any] = {"d_model": 1_000_003, "d_ff": 1_000_033, "num_heads": 1_000_037}
"""Widths that no other dimension is a multiple of, so that the bytes of a tensor show its widths."""


class NotCounted(Exception):
    """A step cannot be traced without values, such as those by which tokens are sent to experts."""


class Batch(NamedTuple):
    """Size of an input: dialogues, tokens of the longest dialogue, tokens of the longest summary."""

    dialogues: int
    source: int
    target: int


class Computation(NamedTuple):
    """How a model is computed."""

    weights: torch.dtype
    """Dtype of the base's weights."""
    autocast: torch.dtype | None
    """Dtype to which autocast casts in a training step."""
    fast: bool
    """Whether the fast paths are used, rather than the reference path."""
    device: str = "cpu"
    """Type of the device whose code paths are taken: `cpu` or `cuda`. Counting needs neither."""
    compiled: bool = False
    """Whether blocks are compiled: their reference path is counted, which keeps more than they do."""
    smoothing: float = 0.0
    """Label smoothing, for which all logits are computed."""


Work = Callable[[Any, Batch, Computation], None]
"""What is counted: `training` or `writing`; it gets a model of fake tensors."""


def training(model: Any, batch: Batch, how: Computation) -> None:
    """Run forward and backward of a training step."""
    ids, labels = _tokens(batch)
    for parameter in model.parameters():
        if parameter.requires_grad:  # gradients are counted by themselves
            parameter.register_post_accumulate_grad_hook(_forget_gradient)
    with torch.autocast("cpu", dtype=how.autocast, enabled=how.autocast is not None):
        loss = _loss(model, ids, labels, how.fast or how.compiled, how.smoothing)
    loss.backward()


def writing(model: Any, batch: Batch, how: Computation) -> None:
    """Encode a batch and run the decoder, whose keys and values are kept until all summaries are written."""
    ids, summaries = _tokens(batch)
    model.eval()
    with torch.no_grad():
        if why_not(model):  # one token: decoding never holds the logits of all
            model(input_ids=ids, decoder_input_ids=summaries[:, :1])
            return
        with without_head(model):
            model(input_ids=ids, decoder_input_ids=summaries)


def activation_bytes(
    config: RunConfig, settings: Any, batch: Batch, how: Computation, work: Work = training
) -> int:
    """Return the peak bytes of a step beside the weights and their gradients.

    Args:
        config: the run; its method adds weights or trains all of them.
        settings: configuration of the architecture.
        batch: size of one forward's input.
        how: dtypes, and the code paths that are taken.
        work: the step: `training`, or `writing` a batch of summaries.

    Raises:
        NotCounted: the steps of this family depend on values.
    """
    # of a full fine-tuning, the moment of the peak depends on the number of layers
    blocks = None if config.method == "full" else repeated_blocks(settings)
    if blocks is not None and blocks > FEW[1]:
        with suppress(UserError):  # a target or a pattern names a later block
            few, more = (_traced(config, settings, batch, how, layers, work) for layers in FEW)
            return _of_all_layers(few, more, blocks)
    return _traced(config, settings, batch, how, None, work)


def flan_t5_bytes(
    config: RunConfig, batch: Batch, how: Computation, work: Work = training
) -> Callable[[dict[str, int]], int]:
    """Return a function from an entry of `SIZES` to its `activation_bytes`.

    All FLAN-T5 take the same steps on tensors of different widths. So a step with a given number of layers is
    traced once, with `PRIMES` as widths, which the widths of each size then replace.
    """
    wide = T5Config(**COMMON, **PRIMES)

    @cache
    def changes(layers: int) -> list[int]:
        return _changes(config, wide, batch, how, layers, work)

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
    config: RunConfig, settings: Any, batch: Batch, how: Computation, n: int | None, work: Work = training
) -> int:
    return most_held(_changes(config, settings, batch, how, n, work))


def _changes(
    config: RunConfig, settings: Any, batch: Batch, how: Computation, n: int | None, work: Work
) -> list[int]:
    """Return the bytes of each tensor in the order in which a step of `n` layers allocates and frees them."""
    with outline(config, settings, how.weights, n) as model, ExitStack() as stack:
        live = stack.enter_context(LiveBytes(model.state_dict(keep_vars=True).values()))
        stack.enter_context(planned_for(how.device))
        if how.device == "cuda":
            stack.enter_context(cuda_kernels())
        if how.fast and not why_not(model):
            stack.enter_context(faster(model))
        try:
            work(model, batch, how)
        except Exception as error:  # whatever a forward does with values that fake tensors do not have
            kind = model.config.model_type
            logger.debug("no step of %s on fake tensors", kind, exc_info=error)
            raise NotCounted(
                f"activations are not counted for this family, {kind}: its steps depend on values"
            ) from error
        return list(live.changes)


def _tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return ids of dialogues and of summaries: (dialogues, source) and (dialogues, target)."""
    lengths = batch.source, batch.target
    ids, labels = (torch.ones(batch.dialogues, length, dtype=torch.long) for length in lengths)
    return ids, labels


def _loss(model: Any, ids: Tensor, labels: Tensor, saves: bool, smoothing: float) -> Tensor:
    """Return the loss; with `saves` without keeping keys, values and, if the head allows it, all logits."""
    if smoothing or not (saves and not why_not(model) and has_plain_frozen_head(model)):
        # Transformers switches the cache off where activations are computed again, and would warn of that
        options = without_cache(model) if saves or model.is_gradient_checkpointing else {}
        output = model(input_ids=ids, decoder_input_ids=labels, labels=labels, **options)
        loss: Tensor = LabelSmoother(smoothing)(output, labels) if smoothing else output.loss
        return loss
    with without_head(model) as head:
        hidden = model(input_ids=ids, decoder_input_ids=labels, use_cache=False).logits
    return chunked_cross_entropy(hidden, head, labels)


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
