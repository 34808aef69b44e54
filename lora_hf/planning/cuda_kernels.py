"""What PyTorch's operations keep on CUDA, counted on fake tensors that are on the CPU.

An operation may keep less on CUDA than on a CPU: attention has a kernel with dropout that keeps no
probabilities, and a dropout mask takes one byte per element. Autocast has other lists of operations. Fake
tensors on CUDA itself need a PyTorch that was built for it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 8
"""Numbers by whose multiples the kernel of attention reads rows of a mask; others are copied first."""
FLOAT32 = ("layer_norm", "softmax", "log_softmax")
"""Functions that CUDA's autocast computes in float32, and the CPU's does not."""


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Inside the block, functions of `torch.nn.functional` make and keep what they would on CUDA.

    They are replaced there, because a PyTorch mode does not reach what a backward pass computes again.
    """
    replaced: dict[str, Any] = {"scaled_dot_product_attention": _attention}
    replaced["dropout"] = partial(_dropout, F.dropout)
    replaced |= {name: partial(_in_float32, getattr(F, name)) for name in FLOAT32}
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.callback(setattr, F, name, getattr(F, name))
            setattr(F, name, function)
        yield


def _in_float32(plain: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        input, args = input.float(), tuple(arg.float() if _is_half(arg) else arg for arg in args)
    return plain(input, *args, **kwargs)


def _is_half(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)


def _dropout(
    plain: Callable[..., Tensor], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not (training and 0 < p < 1) or inplace:
        return plain(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what the memory-efficient kernel does: (batch, heads, queries, width)."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (x.to(dtype) for x in (query, key, value))
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if attn_mask is not None:
        keys = key.shape[2]
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = attn_mask.to(query.dtype)
        strides = attn_mask.stride()
        if strides[-1] != 1 or any(stride % ALIGNMENT for stride in strides[:-1]):
            attn_mask = F.pad(attn_mask, (0, -keys % ALIGNMENT))[..., :keys]
        attn_mask = attn_mask.expand(*query.shape[:3], keys)
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    mixed: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
    )[0]
    return mixed
