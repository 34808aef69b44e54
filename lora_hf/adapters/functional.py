"""The arithmetic of low-rank updates, without modules: the scale, the two products, and dropout.

The update's matrix is s B A with A (r, in_features) and B (out_features, r). A and B are kept in
float32 whatever the base is, and cast to the activations' dtype at use: casting r * (in + out) numbers
costs less than casting every activation up, and autograd returns their gradients in float32.

A third of a T5's training step on a CPU is spent on drawing dropout masks, one number per element. A cheap
mask is random bytes, eight from one draw, compared with a rate in 256ths; the elements kept are scaled by the
true rate. On a GPU, and for rates that 256ths miss by more than a twentieth, `torch.nn.functional.dropout` is
used.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 256
NEAR = 0.05
"""Largest relative difference of a rate in 256ths from the requested one."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> integer type that its bits are read as."""
_cheap_masks = ContextVar("cheap_masks", default=False)


@contextmanager
def cheap_masks(enabled: bool) -> Iterator[None]:
    """Within the block, draw dropout masks as random bytes, or as torch does."""
    token = _cheap_masks.set(enabled)
    try:
        yield
    finally:
        _cheap_masks.reset(token)


def lora_scaling(r: int, lora_alpha: float, use_rslora: bool = False) -> float:
    """Return s = alpha / r (arXiv:2106.09685, 4.1), or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732, eq. 5)."""
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def low_rank_product(x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
    """Return s B A dropout(x) (..., out_features) in the dtype of x, for x (..., in_features).

    The scale multiplies the (..., r) middle, the smallest of the three tensors.
    """
    A, B = lora_A.to(x.dtype), lora_B.to(x.dtype)
    if dropout and has_cheap_masks(x, dropout):
        mask, keep = draw_mask(x.shape, dropout)
        product: Tensor = _MaskedLowRank.apply(x, mask, A, B, scaling / keep)
        return product
    middle = F.linear(F.dropout(x, dropout) if dropout else x, A) * scaling  # (..., in) @ (in, r)
    return F.linear(middle, B)  # (..., r) @ (r, out) -> (..., out)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero each element with this probability and scale the others so that the mean is preserved."""
    if not has_cheap_masks(x, rate):
        return F.dropout(x, rate)
    mask, keep = draw_mask(x.shape, rate)
    dropped: Tensor = _Dropout.apply(x, mask, 1 / keep)
    return dropped


def has_cheap_masks(x: Tensor, rate: float) -> bool:
    """Return whether a mask for x is drawn as bytes."""
    off = abs(round(rate * LEVELS) / LEVELS - rate)
    is_near = off <= NEAR * rate and round(rate * LEVELS) < LEVELS
    return _cheap_masks.get() and x.device.type == "cpu" and x.element_size() in INTEGERS and is_near


def draw_mask(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """Draw a uint8 mask of this shape on the CPU, 1 where an element is kept; and return the share kept."""
    dropped, n = round(rate * LEVELS), math.prod(shape)
    draws = torch.empty(-(-n // 8), dtype=torch.int64).random_(-(2**63), None)  # from the lowest: all 64 bits
    mask = draws.view(torch.uint8)[:n].view(shape)
    return torch.ge(mask, dropped, out=mask), 1 - dropped / LEVELS


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """Return x where the mask is 1 and +0 elsewhere: a bitwise and of x with -1 or 0."""
    integers = INTEGERS[x.element_size()]
    kept = mask.to(integers).neg_().bitwise_and_(x.contiguous().view(integers))
    return kept.view(x.dtype)


class _Dropout(torch.autograd.Function):
    """Dropout that saves the mask, one byte per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return masked(x, mask).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return masked(grads[0], mask).mul_(ctx.scale), None, None


class _MaskedLowRank(torch.autograd.Function):
    """s B A (mask * x). Saves x, which the layer's other adapters share, and no masked copy of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        middle = F.linear(masked(x, mask), A) * scaling
        ctx.save_for_backward(x, mask, A, B, middle)
        ctx.scaling = scaling
        return F.linear(middle, B)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x, mask, A, B, middle = ctx.saved_tensors
        dtype = middle.dtype  # under autocast not that of x, A and B
        g = grads[0].flatten(0, -2).to(dtype)
        g_middle = (g @ B.to(dtype)) * ctx.scaling  # (tokens, out) @ (out, r)
        g_A = (g_middle.T @ masked(x, mask).flatten(0, -2).to(dtype)).to(A.dtype)
        g_B = (g.T @ middle.flatten(0, -2)).to(B.dtype)
        if not ctx.needs_input_grad[0]:
            return None, None, g_A, g_B, None
        return masked((g_middle @ A.to(dtype)).view_as(x).to(x.dtype), mask), None, g_A, g_B, None


def row_norms(weight: Tensor) -> Tensor:
    """Return the Euclidean norm of each output row, (out, in) -> (out,)."""
    return torch.linalg.vector_norm(weight, dim=1)


def relative_error(approximation: Tensor, weight: Tensor) -> float:
    """Return the Frobenius norm of the difference relative to the weight's."""
    norm = torch.linalg.vector_norm(weight).item()
    return torch.linalg.vector_norm(approximation - weight).item() / norm if norm else 0.0
