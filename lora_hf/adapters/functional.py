"""The arithmetic of low-rank updates, without modules: the scale, the two products, and dropout.

The update's matrix is s B A with A (r, in_features) and B (out_features, r). A and B are kept in
float32 whatever the base is, and cast to the activations' dtype at use: casting r * (in + out) numbers
costs less than casting every activation up, and autograd returns their gradients in float32.

A third of a T5's training step on a CPU is spent on drawing dropout masks, one number per element. A cheap
mask is random bytes, eight from one draw, compared with a rate in 256ths; the elements kept are scaled by the
true rate. On a GPU, and for rates that 256ths miss by more than a twentieth, `torch.nn.functional.dropout` is
used.

On a GPU a low-rank update takes little arithmetic and many kernels. `add_low_rank` leaves to the products
what they do at no cost: the scale, the sum with the layer's output, and gradients in float32.
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
_fast_branches: ContextVar[bool] = ContextVar("fast_branches")
_entered: dict[object, bool] = {}
"""Values of the blocks that threads are in, the latest last. PyTorch's own threads, in which a backward pass
on a GPU computes checkpointed blocks again, have none."""
_planned_device: ContextVar[str | None] = ContextVar("planned_device", default=None)


@contextmanager
def planned_for(device: str) -> Iterator[None]:
    """Within the block, tensors on the CPU take the code paths of another type of device.

    A plan counts what a step holds on a GPU, by fake tensors, where there may be no GPU.
    """
    token = _planned_device.set(device)
    try:
        yield
    finally:
        _planned_device.reset(token)


def device_path(x: Tensor) -> str:
    """Return the type of device whose code path a tensor takes: its own, unless it is planned for another."""
    return _planned_device.get() or x.device.type


@contextmanager
def fast_branches(enabled: bool) -> Iterator[None]:
    """Within the block, draw dropout masks as random bytes (CPU) and use `add_low_rank` (GPU), or do not."""
    token, key = _fast_branches.set(enabled), object()
    _entered[key] = enabled
    try:
        yield
    finally:
        del _entered[key]
        _fast_branches.reset(token)


def _has_fast_branches() -> bool:
    return _fast_branches.get([False, *_entered.values()][-1])


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
    middle = F.linear(F.dropout(x, dropout) if dropout else x, A)  # (..., in) @ (in, r) -> (..., r)
    return F.linear(middle * scaling if scaling != 1 else middle, B)  # (..., r) @ (r, out) -> (..., out)


def has_fused_branches(x: Tensor) -> bool:
    """Return whether the fast path computes this layer's low-rank updates by `add_low_rank`."""
    return not torch.compiler.is_compiling() and device_path(x) == "cuda" and _has_fast_branches()


def add_low_rank(
    output: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scaling: float,
    dropout: float,
    cast: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return W x + s B A dropout(x) (..., out_features), in the dtype of W x.

    Args:
        output: W x (..., out_features), contiguous, changed in place; None computes it from `weight`.
        x: (..., in_features).
        weight: W (out_features, in_features), frozen, if there is no `output`.
        lora_A, lora_B: (r, in_features), (out_features, r).
        scaling: s.
        dropout: rate.
        cast: A and B in the dtype of the output, if they are cast already.
    """
    if output is not None:
        dtype = output.dtype
    elif torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        dtype = x.dtype
    if cast is None or cast[0].dtype != dtype:
        cast = lora_A.detach().to(dtype), lora_B.detach().to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        W = None if weight is None else weight.to(dtype)
        added: Tensor = _AddLowRank.apply(output, x, W, lora_A, lora_B, *cast, scaling, dropout)
    return added


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
    return _has_fast_branches() and device_path(x) == "cpu" and x.element_size() in INTEGERS and is_near


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


class _AddLowRank(torch.autograd.Function):
    """y = W x + B m with m = s A d, d = dropout(x); x (tokens, in), m (tokens, r), y (tokens, out).

    With g = dL/dy:  dB = g^T m,  dm = s g B,  dA = dm^T d,  dx = g W + mask * (dm A) / keep.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor | None,
        x: Tensor,
        W: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        A: Tensor,
        B: Tensor,
        scaling: float,
        rate: float,
    ) -> Tensor:
        ctx.settings = x.shape, x.dtype, lora_A.dtype, scaling, 1 / (1 - rate)
        if W is not None:
            x = x.to(W.dtype)
            output = F.linear(x, W)
        else:
            ctx.mark_dirty(output)
        assert output is not None
        dropped, mask = torch.native_dropout(x, rate, True) if rate else (x, None)
        dropped = dropped.flatten(0, -2).to(A.dtype)
        middle = _product(dropped, A.T, scaling)
        output.view(-1, output.shape[-1]).addmm_(middle, B.T)
        ctx.save_for_backward(dropped, mask, middle, A, B, W)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dropped, mask, middle, A, B, W = ctx.saved_tensors
        shape, dtype, factor_dtype, scaling, scale = ctx.settings
        _, needs_x, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        g_x = g_A = g_B = None
        with torch.autocast(dropped.device.type, enabled=False):
            g = grads[0].flatten(0, -2)
            if needs_B:
                g_B = _product(g.T, middle, 1.0, factor_dtype)
            g_middle = _product(g, B, scaling)
            if needs_A:
                g_A = _product(g_middle.T, dropped, 1.0, factor_dtype)
            if needs_x and W is not None:
                g_x = torch.mm(g, W)
                if mask is None:
                    g_x.addmm_(g_middle, A)
                else:
                    g_x.addcmul_(torch.mm(g_middle, A), mask.view_as(g_x), value=scale)
            elif needs_x:
                g_x = torch.mm(g_middle, A)
                if mask is not None:
                    g_x = torch.ops.aten.native_dropout_backward(g_x, mask.view_as(g_x), scale)
            if g_x is not None:
                g_x = g_x.view(shape).to(dtype)
        passed = grads[0] if W is None else None
        return passed, g_x, None, g_A, g_B, None, None, None, None


def _product(a: Tensor, b: Tensor, scale: float, dtype: torch.dtype | None = None) -> Tensor:
    """Return scale * a b, (n, k) @ (k, m), in a dtype; on a GPU by one kernel."""
    if dtype is not None and dtype != a.dtype:
        return product_in(a, b, dtype)
    if scale == 1:
        return torch.mm(a, b)
    return torch.addmm(a.new_empty(len(a), b.shape[1]), a, b, beta=0, alpha=scale)  # beta 0: nothing is read


def product_in(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a b, (n, k) @ (k, m), in another dtype.

    On a GPU, products of 16-bit numbers are written in float32 by their own kernel. `mm.dtype` exists for
    CUDA alone, with these dtypes alone, in PyTorch 2.11 to 2.13 (native_functions.yaml).
    """
    is_half = a.dtype in (torch.float16, torch.bfloat16)
    if a.device.type == "cuda" and is_half and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


def row_norms(weight: Tensor) -> Tensor:
    """Return the Euclidean norm of each output row, (out, in) -> (out,)."""
    return torch.linalg.vector_norm(weight, dim=1)


def relative_error(approximation: Tensor, weight: Tensor) -> float:
    """Return the Frobenius norm of the difference relative to the weight's."""
    norm = torch.linalg.vector_norm(weight).item()
    return torch.linalg.vector_norm(approximation - weight).item() / norm if norm else 0.0
