"""T5's attention: one autograd function with dropout on the probabilities, and one path without gradients.

PyTorch's fused kernels for the CPU have no dropout: with it, `scaled_dot_product_attention` falls back to
matrix products and keeps scores, probabilities and dropped probabilities. Here the backward pass needs q, k,
v, the probabilities and one byte per element. For one query per row, as in decoding, the fused kernels take
several times as long as two matrix products.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lora_hf.adapters.functional import device_path, draw_mask, has_cheap_masks, masked

ALIGNMENT = 8
"""Numbers by whose multiples CUDA's memory-efficient kernel reads rows of a mask (aten's attention.cpp)."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return dropout(softmax(s q k^T + bias + mask)) v, with the signature of Transformers' registry.

    Args:
        module: the attention layer.
        query, key, value: (batch, heads, length, d_kv). Without gradients and with one query per row, keys
            and values may have fewer rows: consecutive queries share one, as beams share their source.
        attention_mask: (batch, 1, queries, keys), added to the scores, or None; one row per row of the keys.
        dropout: rate on the probabilities; 0 goes through Transformers' own SDPA.
        scaling: s; T5's is 1.
        position_bias: (1, heads, queries, keys), added to the scores, or None.

    Returns:
        (batch, queries, heads, d_kv), and None for the probabilities.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    shares_keys = len(key) < len(query)
    if not dropout and not torch.is_grad_enabled() and (shares_keys or device_path(query) == "cpu"):
        return _without_gradients(query, key, value, _added(position_bias, attention_mask), scale), None
    if not dropout or not has_cheap_masks(query, dropout):
        if position_bias is not None and attention_mask is not None and not position_bias.requires_grad:
            attention_mask, position_bias = _added(position_bias, attention_mask), None
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scale,
            position_bias=position_bias,
            **kwargs,
        )
    if torch.is_autocast_enabled(query.device.type):  # quantized layers may give float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    mixed = _Attention.apply(query, key, value, position_bias, attention_mask, dropout, scale)
    return mixed.transpose(1, 2).contiguous(), None


def _added(bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Return bias + mask (batch, heads, queries, keys), computed once: all layers of T5 share both."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    known: tuple[Tensor, Tensor] | None = getattr(mask, "sum_with_bias", None)
    if known is None or known[0] is not bias:
        known = (bias, bias.contiguous() + mask if device_path(bias) == "cpu" else _aligned_sum(bias, mask))
        mask.sum_with_bias = known  # type: ignore[attr-defined]
    return known[1]


def _aligned_sum(bias: Tensor, mask: Tensor) -> Tensor:
    """Return bias + mask in rows of a multiple of `ALIGNMENT` numbers, which PyTorch need not copy."""
    *outer, keys = torch.broadcast_shapes(bias.shape, mask.shape)
    dtype = torch.promote_types(bias.dtype, mask.dtype)
    rows = bias.new_empty(*outer, -(-keys // ALIGNMENT) * ALIGNMENT, dtype=dtype)
    return torch.add(bias, mask, out=rows[..., :keys])


def _without_gradients(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float
) -> Tensor:
    """Return (batch, queries, heads, d_kv)."""
    rows = len(query)
    if beams := rows > len(key):  # (sources * beams, heads, 1, d_kv) -> (sources, heads, beams, d_kv)
        query = query.view(len(key), -1, *query.shape[1:]).squeeze(3).transpose(1, 2)
    if query.shape[2] > 1 and not beams:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale)
    else:
        scores = torch.matmul(query * scale if scale != 1 else query, key.transpose(2, 3))
        probabilities = torch.softmax(scores if added is None else scores.add_(added), -1)
        mixed = torch.matmul(probabilities, value)
    mixed = mixed.transpose(1, 2)
    return mixed.reshape(rows, 1, *mixed.shape[2:]) if beams else mixed


class _Attention(torch.autograd.Function):
    """S = s Q K^T + bias + mask;  P = softmax(S);  D = M P / keep;  O = D V.

    Q is (batch, heads, queries, d_kv), K and V (batch, heads, keys, d_kv); S, P and the mask M of zeros and
    ones are (batch, heads, queries, keys).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
        rate: float,
        scale: float,
    ) -> Tensor:
        scores = torch.matmul(query, key.transpose(2, 3))
        if scale != 1:
            scores.mul_(scale)
        for term in (bias, added):
            if term is not None:
                scores.add_(term)
        probabilities = torch.softmax(scores, -1, dtype=scores.dtype)
        mask, keep = draw_mask(scores.shape, rate)
        ctx.save_for_backward(query, key, value, probabilities, mask)
        ctx.scale, ctx.keep = scale, keep
        return torch.matmul(masked(probabilities, mask), value).mul_(1 / keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probabilities, mask = ctx.saved_tensors
        g = grads[0] / ctx.keep  # dO / keep (batch, heads, queries, d_kv): D's factor 1 / keep, taken once
        # dV = D^T dO: (..., keys, queries) @ (..., queries, d_kv)
        g_value = torch.matmul(masked(probabilities, mask).transpose(2, 3), g)
        # dP = M (dO V^T) / keep: (..., queries, d_kv) @ (..., d_kv, keys)
        g_kept = masked(torch.matmul(g, value.transpose(2, 3)), mask)
        # dS = P (dP - sum_keys(dP P)), the derivative of softmax
        g_scores = torch._softmax_backward_data(g_kept, probabilities, -1, probabilities.dtype)
        # the bias (1, heads, queries, keys) is shared by the batch
        g_bias = g_scores.sum(0, keepdim=True) if ctx.needs_input_grad[3] else None
        if ctx.scale != 1:
            g_scores = g_scores * ctx.scale  # dS / d(Q K^T) = s
        # dQ = s dS K: (..., queries, keys) @ (..., keys, d_kv);  dK = s dS^T Q
        g_query, g_key = torch.matmul(g_scores, key), torch.matmul(g_scores.transpose(2, 3), query)
        return g_query, g_key, g_value, g_bias, None, None, None
