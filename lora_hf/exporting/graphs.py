"""Two graphs of a T5: the encoder with the cross-attention's keys and values, and one decoder step.

The keys and values depend on the source alone. With them computed by the encoder, the decoder's first step is
like every other, so that two graphs suffice instead of three.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

HIDDEN = -1e9
"""Added to the attention scores of masked positions."""


class EncoderGraph(nn.Module):
    """input_ids and attention_mask (batch, source) -> the cross-attention's keys and values by decoder layer.

    Each is (batch, heads, source, d_kv), in the order: keys of layer 0, values of layer 0, keys of layer 1.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        hidden, bias = self.encoder.embed_tokens(input_ids), None
        mask = additive_mask(attention_mask)
        for block in self.encoder.block:
            hidden, bias, _ = block(hidden, mask, bias)
        hidden = self.encoder.final_layer_norm(hidden)
        states = []
        for block in self.decoder.block:
            attention = block.layer[1].EncDecAttention
            for product in (attention.k, attention.v):
                states.append(split_heads(product(hidden), attention.key_value_proj_dim))
        return tuple(states)


class DecoderGraph(nn.Module):
    """One token per row and the cache -> logits of the next token, and the cache with this token.

    The inputs are `input_ids` (batch, 1), `attention_mask` (batch, source), then for each layer the keys and
    values of the tokens so far (batch, heads, tokens, d_kv), at first with tokens = 0, then the encoder's.
    The outputs are logits (batch, vocabulary) and the keys and values with one more token.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head = model.decoder, model.lm_head
        scaled = getattr(
            model.config, "scale_decoder_outputs", model.config.tie_word_embeddings
        )  # mT5 reads this
        self.scale = model.model_dim**-0.5 if scaled else 1.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        layers = len(self.decoder.block)
        cache = filled_cache(states[: 2 * layers], states[2 * layers :])
        hidden, bias, cross_bias = self.decoder.embed_tokens(input_ids), None, None
        source = attention_mask[..., None].to(
            hidden.dtype
        )  # a placeholder for the encoder's output, whose values are not used
        mask = additive_mask(attention_mask)
        for block in self.decoder.block:
            hidden, bias, cross_bias = block(
                hidden, None, bias, source, mask, cross_bias, past_key_values=cache
            )
        hidden = self.decoder.final_layer_norm(hidden) * self.scale
        own: Any = cache.self_attention_cache.layers
        written = [x for layer in own for x in (layer.keys, layer.values)]
        return (self.head(hidden)[:, -1], *written)


def additive_mask(mask: Tensor) -> Tensor:
    """Return the additive mask (batch, 1, 1, source): 0 for tokens, `HIDDEN` for padding."""
    return (1.0 - mask[:, None, None, :].to(torch.float32)) * HIDDEN


def split_heads(x: Tensor, d_kv: int) -> Tensor:
    """Split heads: (batch, source, heads * d_kv) -> (batch, heads, source, d_kv)."""
    return x.view(*x.shape[:-1], -1, d_kv).transpose(1, 2)


def filled_cache(own: tuple[Tensor, ...], source: tuple[Tensor, ...]) -> EncoderDecoderCache:
    """Return a cache that holds the tokens so far and the whole source."""
    caches = []
    for states in (own, source):
        cache = DynamicCache()
        for layer in range(len(states) // 2):
            cache.update(states[2 * layer], states[2 * layer + 1], layer)
        caches.append(cache)
    both = EncoderDecoderCache(*caches)
    both.is_updated = dict.fromkeys(range(len(source) // 2), True)
    return both
