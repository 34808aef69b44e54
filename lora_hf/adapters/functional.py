"""The arithmetic of low-rank updates, free of modules: the scale, the two products, and dropout.

The update's matrix is s B A with A (r, in_features) and B (out_features, r). A and B are kept in
float32 whatever the base is, and cast to the activations' dtype at use: casting r * (in + out) numbers
costs less than casting every activation up, and autograd returns their gradients in float32.

A third of a T5's training step on a CPU goes into drawing dropout masks a number at a time. A cheap mask is
random bytes, eight from one draw, compared with a rate in 256ths; what is kept is scaled by what was really
kept. On a GPU, and for rates that 256ths miss by more than a twentieth, it is `torch.nn.functional.dropout`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 256
NEAR = 0.05
"""How far a rate in 256ths may be from the one that was asked for, as a share of it."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of a number in bytes: what its bits are read as."""
_state = {"cheap_masks": False}


@contextmanager
def cheap_masks(enabled: bool) -> Iterator[None]:
    """Inside the block dropout draws bytes, or as torch does."""
    before, _state["cheap_masks"] = _state["cheap_masks"], enabled
    try:
        yield
    finally:
        _state["cheap_masks"] = before


def lora_scaling(r: int, lora_alpha: float, use_rslora: bool = False) -> float:
    """s = alpha / r (arXiv:2106.09685, section 4.1), or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732, eq. 5)."""
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def low_rank_product(x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
    """s B A dropout(x), for x (..., in_features); returns (..., out_features) in the dtype of x.

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
    """x with each element zeroed with this probability, else scaled so that its mean stays."""
    if not has_cheap_masks(x, rate):
        return F.dropout(x, rate)
    mask, keep = draw_mask(x.shape, rate)
    dropped: Tensor = _Dropout.apply(x, mask, 1 / keep)
    return dropped


def has_cheap_masks(x: Tensor, rate: float) -> bool:
    """Whether a mask for x is drawn as bytes."""
    off = abs(round(rate * LEVELS) / LEVELS - rate)
    is_near = off <= NEAR * rate and round(rate * LEVELS) < LEVELS
    return _state["cheap_masks"] and x.device.type == "cpu" and x.element_size() in INTEGERS and is_near


def draw_mask(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """uint8 of this shape, 1 where an element is kept, on the CPU; and the share that is kept."""
    dropped, n = round(rate * LEVELS), math.prod(shape)
    draws = torch.empty(-(-n // 8), dtype=torch.int64).random_(-(2**63), None)  # from the lowest: all 64 bits
    mask = draws.view(torch.uint8)[:n].view(shape)
    return torch.ge(mask, dropped, out=mask), 1 - dropped / LEVELS


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is 1, and +0 elsewhere: the bits of x and those of -1 or 0."""
    integers = INTEGERS[x.element_size()]
    kept = mask.to(integers).neg_().bitwise_and_(x.contiguous().view(integers))
    return kept.view(x.dtype)


class _Dropout(torch.autograd.Function):
    """Keeps the mask, a byte an element."""

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
    """s B A (mask * x). Keeps x, which the layer's other adapters share, and no masked copy of it."""

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
    """The Euclidean norm of each output row, (out, in) -> (out,)."""
    return torch.linalg.vector_norm(weight, dim=1)


def relative_error(approximation: Tensor, weight: Tensor) -> float:
    """The Frobenius norm of the difference, as a share of the weight's."""
    norm = torch.linalg.vector_norm(weight).item()
    return torch.linalg.vector_norm(approximation - weight).item() / norm if norm else 0.0
