"""T5's norm and gated activation, each as one autograd function that keeps only its inputs.

Composed of small operations, as in Transformers, they keep five to eight tensors of the size of the
activations for the backward pass, several of them in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_hf.adapters.functional import draw_mask, has_cheap_masks, masked


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) over the last dimension (arXiv:1910.07467), as T5LayerNorm.

    The mean is taken in float32 or wider; the result has the dtype of a half-precision weight. A GPU has one
    kernel for x and weight of the same dtype, which rounds once less. It computes in float32; autocast, which
    does not know this, would cast x to float32 for it, and with the result all that follows.
    """
    if _has_kernel(x, weight):
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, weight.shape, weight, eps)
    normed: Tensor = _RmsNorm.apply(x, weight, eps)
    return normed


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    return x.device.type != "cpu" and x.dtype == weight.dtype


class _RmsNorm(torch.autograd.Function):
    """y = w n, n = x i, i = (mean(x^2) + eps)^(-1/2); x (..., d), w (d,), i (..., 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = (norm.square() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return weight * _normed(wide, inverse, x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        wide = x.to(inverse.dtype)
        g_x = g_weight = None
        if ctx.needs_input_grad[0]:
            # dx = i (dn - x i^2 mean(dn x)) with dn = w dy, because di/dx = -x i^3 / d
            g = (grads[0] * weight).to(inverse.dtype)
            share = (g * wide).sum(-1, keepdim=True).mul_(inverse.square()).div_(x.shape[-1])
            g_x = g.sub_(wide * share).mul_(inverse).to(x.dtype)
        if ctx.needs_input_grad[1]:  # dw = the sum of dy n over all tokens
            g_weight = (grads[0] * _normed(wide, inverse, x, weight)).flatten(0, -2).sum(0).to(weight.dtype)
        return g_x, g_weight, None


def _normed(wide: Tensor, inverse: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    is_half = weight.dtype in (torch.float16, torch.bfloat16)
    return (wide * inverse).to(weight.dtype if is_half else inverse.dtype)


def gated_gelu(gate: Tensor, value: Tensor, rate: float) -> Tensor:
    """Return dropout(gelu(gate) * value), gelu as its tanh approximation `gelu_new` (arXiv:2002.05202)."""
    if not rate or not has_cheap_masks(gate, rate):
        product: Tensor = _GatedGelu.apply(gate, value, None, 1.0)
        return F.dropout(product, rate) if rate else product
    mask, keep = draw_mask(gate.shape, rate)
    dropped: Tensor = _GatedGelu.apply(gate, value, mask, 1 / keep)
    return dropped


class _GatedGelu(torch.autograd.Function):
    """y = c M gelu(a) v, of gate a, value v, mask M of zeros and ones, c = 1 / keep; all of one shape."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(gate, value, mask)
        ctx.scale = scale
        product = F.gelu(gate, approximate="tanh").mul_(value)
        return product if mask is None else masked(product, mask).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gate, value, mask = ctx.saved_tensors
        # with g = c M dy:  da = gelu'(a) v g;  dv = gelu(a) g
        g = grads[0] if mask is None else masked(grads[0], mask).mul_(ctx.scale)
        g_gate = torch.ops.aten.gelu_backward(g * value, gate, approximate="tanh")
        return g_gate, F.gelu(gate, approximate="tanh").mul_(g), None, None
