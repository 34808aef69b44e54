"""Weights laid out for the CPU's matrix kernels once, rather than in every product.

Products with few rows, as in decoding, take 1.3 to 4 times as long from the plain layout.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_hf.adapters.kept import KeptWeights

MOST_BYTES = 4 * 2**30
"""Limit on the packed copies of weights, which are held beside the weights themselves inside the block."""
logger = logging.getLogger(__name__)


class PackedLinear(nn.Linear):
    """A linear layer that multiplies by a packed copy of its weight where no gradient is needed."""

    packed: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if torch.is_grad_enabled() or input.dtype != self.weight.dtype:
            return F.linear(input, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")
        return product


def pack(weight: Tensor) -> Tensor:
    """Return a weight (out, in) laid out for the CPU's kernels."""
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return laid_out


@contextmanager
def packed(model: nn.Module, kept: KeptWeights | None = None) -> Iterator[None]:
    """Let dense linear layers on the CPU multiply by packed weights inside the block.

    Args:
        model: its layers are `nn.Linear` again after the block.
        kept: packed weights of earlier blocks.
    """
    kept = kept or KeptWeights()
    layers = [module for module in model.modules() if type(module) is nn.Linear and _can(module)]
    needed = sum(layer.weight.nbytes for layer in layers)
    if needed > MOST_BYTES:
        logger.debug(
            "weights are not packed: they take %.1f GiB, and the limit is %.1f GiB",
            needed / 2**30,
            MOST_BYTES / 2**30,
        )
        layers = []
    try:
        for layer in layers:
            layer.packed = kept.of(("packed", id(layer)), [layer.weight], partial(pack, layer.weight))
            layer.__class__ = PackedLinear
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear
            layer.__dict__.pop("packed", None)


def _can(layer: Any) -> bool:
    if hasattr(layer, "_hf_hook"):  # accelerate's forward, which takes the place of the class's
        return False
    if layer.weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if layer.weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(layer.weight.dtype == torch.float32)
