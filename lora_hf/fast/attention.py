"""T5's attention: with dropout on its probabilities as one autograd function, and without gradients.

Torch's fused kernels for the CPU know no dropout: with it, `scaled_dot_product_attention` falls back to the
plain product, which keeps scores, probabilities and dropped probabilities. Here the backward pass needs q, k,
v, the probabilities and a byte an element. For one query a row, which is what decoding asks for, the kernels
take several times as long as two plain products.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lora_hf.adapters.functional import draw_mask, has_cheap_masks, masked


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
    """softmax(s q k^T + bias + mask), dropped, times v: an attention function in Transformers' registry.

    Args:
        module: the attention layer.
        query, key, value: (batch, heads, length, d_kv). Without gradients and of one query a row, keys may be
            of fewer rows: each is for as many queries in turn, as a source is for its dialogue's beams.
        attention_mask: (batch, 1, queries, keys), added to the scores, or None; of the keys' rows.
        dropout: rate on the probabilities; 0 goes through Transformers' own SDPA.
        scaling: s; T5's is 1.
        position_bias: (1, heads, queries, keys), added to the scores, or None.

    Returns:
        (batch, queries, heads, d_kv), and None for the probabilities.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    shares_keys = len(key) < len(query)
    if not dropout and not torch.is_grad_enabled() and (shares_keys or query.device.type == "cpu"):
        return _without_gradients(query, key, value, _added(position_bias, attention_mask), scale), None
    if not dropout or not has_cheap_masks(query, dropout):
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
    mixed = _Attention.apply(query, key, value, position_bias, attention_mask, dropout, scale)
    return mixed.transpose(1, 2).contiguous(), None


def _added(bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """bias + mask, (batch, heads, queries, keys): T5's layers share both, so the first one's sum is kept."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    known: tuple[Tensor, Tensor] | None = getattr(mask, "sum_with_bias", None)
    if known is None or known[0] is not bias:
        known = (bias, bias.contiguous() + mask)
        mask.sum_with_bias = known  # type: ignore[attr-defined]
    return known[1]


def _without_gradients(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float
) -> Tensor:
    """(batch, queries, heads, d_kv)."""
    rows = len(query)
    if beams := rows > len(key):
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
        g = grads[0] / ctx.keep
        g_value = torch.matmul(masked(probabilities, mask).transpose(2, 3), g)
        g_kept = masked(torch.matmul(g, value.transpose(2, 3)), mask)
        g_scores = torch._softmax_backward_data(g_kept, probabilities, -1, probabilities.dtype)
        g_bias = g_scores.sum(0, keepdim=True) if ctx.needs_input_grad[3] else None
        if ctx.scale != 1:
            g_scores = g_scores * ctx.scale
        g_query, g_key = torch.matmul(g_scores, key), torch.matmul(g_scores.transpose(2, 3), query)
        return g_query, g_key, g_value, g_bias, None, None, None
