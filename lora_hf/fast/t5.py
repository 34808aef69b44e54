"""The fast paths of a T5: its modules get a faster `forward` for the duration of a block of code.

A module's class is changed to a subclass with another `forward`, so that parameters, names, hooks and
wrappers stay.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.mt5 import modeling_mt5
from transformers.models.t5 import modeling_t5
from transformers.models.umt5 import modeling_umt5

from lora_hf.adapters.functional import dropout, fast_branches
from lora_hf.fast.attention import attention
from lora_hf.fast.casting import cast_together
from lora_hf.fast.elementwise import gated_gelu, rms_norm

ATTENTION = "lora_hf"
"""Key of `fast.attention.attention` in Transformers' registries."""
logger = logging.getLogger(__name__)


class _Norm:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class _Gated:
    """In float16 autocast, the product of gate and value and `wo` are computed in float32.

    They are all of a T5 that can pass float16's largest number, however large its hidden states are. These
    are summed in float32. Every other product in float16 has an input that a norm bounds: |W n| is at most
    sqrt(d) |w|_max |W| for n of the norm with weights w, and o's input is a mean of values.
    """

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        gate, value = self.wi_0(hidden_states), self.wi_1(hidden_states)
        rate, device = self.dropout.p if self.training else 0.0, gate.device.type
        if _is_float16(device):
            with torch.autocast(device, enabled=False):
                return self.wo(gated_gelu(gate.float(), value.float(), rate))
        middle = gated_gelu(gate, value, rate)
        dtype = self.wo.weight.dtype  # packed 4-bit weights are kept as integers
        if dtype.is_floating_point and not torch.is_autocast_enabled(device):
            middle = middle.to(dtype)  # autocast would cast it back
        return self.wo(middle)


def _is_float16(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


class _Dropout:
    def forward(self: Any, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x


FASTER: dict[type[nn.Module], type] = {
    modeling_t5.T5LayerNorm: _Norm,
    modeling_mt5.MT5LayerNorm: _Norm,
    modeling_umt5.UMT5LayerNorm: _Norm,
    modeling_t5.T5DenseGatedActDense: _Gated,
    modeling_mt5.MT5DenseGatedActDense: _Gated,
    modeling_umt5.UMT5DenseGatedActDense: _Gated,
    nn.Dropout: _Dropout,
}
HAS_INTERFACE = "ALL_ATTENTION_FUNCTIONS" in modeling_t5.T5Attention.forward.__code__.co_names
"""True if T5 takes its attention function from the registry in this version of Transformers."""
MODELS = ("t5", "mt5", "umt5")


def why_not(model: Any) -> str | None:
    """Return why a model has no fast paths, or None if it has them."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in MODELS:
        return f"they are written for {', '.join(MODELS)}, and this is {kind}"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "accelerate has spread the model over devices (device_map), by forwards of its own"
    return None


def why_not_float16(model: Any) -> str | None:
    """Return why a model's fast path does not keep it within float16's range, or None if it does."""
    if reason := why_not(model):
        return reason
    gated = sum(type(m) in FASTER and hasattr(m, "wi_1") and has_gelu(m) for m in model.modules())
    if gated != sum(hasattr(m, "wo") for m in model.modules()):
        return "its feed-forward layers are not gated with gelu_new, as those of FLAN-T5 are"
    wo = next(m.wo for m in model.modules() if hasattr(m, "wo"))
    dtype = getattr(wo, "base_layer", wo).weight.dtype
    if dtype != torch.float32:
        return f"its layers `wo` are in {dtype}, not in float32"
    return None


def shares_sources(model: Any) -> bool:
    """Return whether beams may share their source's keys in `faster`; UMT5 takes its shapes from the keys."""
    return HAS_INTERFACE and why_not(model) is None and model.config.model_type != "umt5"


@contextmanager
def faster(model: Any) -> Iterator[None]:
    """Use the fast paths of norms, activations, attention and dropout inside the block."""
    changed = [(m, type(m)) for m in model.modules() if type(m) in FASTER and has_gelu(m)]
    if kept := sum(type(m) in FASTER and not has_gelu(m) for m in model.modules()):
        logger.debug("%d feed-forward layers take the reference path: their activation is not gelu_new", kept)
    try:
        for module, kind in changed:
            module.__class__ = faster_class(kind)  # type: ignore[arg-type]
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, eager_mask)
        with fast_branches(True), attention_by(model, ATTENTION), cast_together(_stacks(model)):
            yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


@contextmanager
def attention_by(model: Any, name: str) -> Iterator[None]:
    """Use another attention function of the registry inside the block, if this Transformers has one."""
    # encoder and decoder one by one: Transformers 5.17 sets that of the model alone
    parts = [m for m in model.modules() if isinstance(m, PreTrainedModel)] if HAS_INTERFACE else []
    before = [part.config._attn_implementation for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation(name)
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part.set_attn_implementation(own)


def _stacks(model: nn.Module) -> list[nn.Module]:
    kinds = (modeling_t5.T5Stack, modeling_mt5.MT5Stack, modeling_umt5.UMT5Stack)
    return [module for module in model.modules() if isinstance(module, kinds)]


def has_gelu(module: Any) -> bool:
    """Return False for a gated layer with another activation than `gelu_new`."""
    activation = getattr(module, "act", None)
    return activation is None or type(activation).__name__ == "NewGELUActivation"


@cache  # so that a module's class is one class
def faster_class(kind: Any) -> type[nn.Module]:
    return type(f"Faster{kind.__name__}", (FASTER[kind], kind), {})


class _Through(nn.Linear):
    """An output head that returns its input."""

    def forward(self, input: Tensor) -> Tensor:
        return input


@contextmanager
def without_head(model: Any) -> Iterator[Tensor]:
    """Make the model's `logits` its last hidden states inside the block, and yield the head's weight."""
    head = model.lm_head
    head.__class__ = _Through
    try:
        yield head.weight
    finally:
        head.__class__ = nn.Linear


def has_plain_frozen_head(model: Any) -> bool:
    """Return whether `chunked_cross_entropy` can take the place of the head: linear, frozen, no bias."""
    head = getattr(model, "lm_head", None)
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad
