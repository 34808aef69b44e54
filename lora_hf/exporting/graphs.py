"""A T5's two graphs: an encoder that also makes the source's keys and values, and one step of the decoder.

The keys and values of the source depend on it alone: making them with it leaves a decoder that has no first
step of its own, so that two graphs do, not three.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

HIDDEN = -1e9
"""Added to the scores of positions that are not looked at."""


class EncoderGraph(nn.Module):
    """input_ids and attention_mask (batch, source) -> keys and values of each decoder layer's source.

    Each is (batch, heads, source, d_kv): the first layer's keys, its values, the second's, and so on.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        hidden, bias = self.encoder.embed_tokens(input_ids), None
        mask = added(attention_mask)
        for block in self.encoder.block:
            hidden, bias, _ = block(hidden, mask, bias)
        hidden = self.encoder.final_layer_norm(hidden)
        made = []
        for block in self.decoder.block:
            attention = block.layer[1].EncDecAttention
            for product in (attention.k, attention.v):
                made.append(by_head(product(hidden), attention.key_value_proj_dim))
        return tuple(made)


class DecoderGraph(nn.Module):
    """One token of each row, and what was before it -> the next token's logits, and keys and values with it.

    The inputs are `input_ids` (batch, 1), `attention_mask` (batch, source), then for each layer the keys and
    values of the tokens so far (batch, heads, tokens, d_kv), no tokens at first, then those of the encoder.
    The outputs are logits (batch, vocabulary) and the keys and values with one token more.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head = model.decoder, model.lm_head
        scaled = getattr(
            model.config, "scale_decoder_outputs", model.config.tie_word_embeddings
        )  # mT5 asks that
        self.scale = model.model_dim**-0.5 if scaled else 1.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        layers = len(self.decoder.block)
        cache = filled(states[: 2 * layers], states[2 * layers :])
        hidden, bias, cross_bias = self.decoder.embed_tokens(input_ids), None, None
        source = attention_mask[..., None].to(
            hidden.dtype
        )  # stands for the encoder's output, which is not read
        mask = added(attention_mask)
        for block in self.decoder.block:
            hidden, bias, cross_bias = block(
                hidden, None, bias, source, mask, cross_bias, past_key_values=cache
            )
        hidden = self.decoder.final_layer_norm(hidden) * self.scale
        own: Any = cache.self_attention_cache.layers
        written = [x for layer in own for x in (layer.keys, layer.values)]
        return (self.head(hidden)[:, -1], *written)


def added(mask: Tensor) -> Tensor:
    """(batch, 1, 1, source): 0 where there is a token, `HIDDEN` where there is padding."""
    return (1.0 - mask[:, None, None, :].to(torch.float32)) * HIDDEN


def by_head(x: Tensor, d_kv: int) -> Tensor:
    """(batch, source, heads * d_kv) -> (batch, heads, source, d_kv)."""
    return x.view(*x.shape[:-1], -1, d_kv).transpose(1, 2)


def filled(own: tuple[Tensor, ...], source: tuple[Tensor, ...]) -> EncoderDecoderCache:
    """A cache that holds the tokens so far and the whole source."""
    caches = []
    for states in (own, source):
        cache = DynamicCache()
        for layer in range(len(states) // 2):
            cache.update(states[2 * layer], states[2 * layer + 1], layer)
        caches.append(cache)
    both = EncoderDecoderCache(*caches)
    both.is_updated = dict.fromkeys(range(len(source) // 2), True)
    return both
