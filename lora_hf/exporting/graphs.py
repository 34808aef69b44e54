"""The two graphs of an encoder-decoder: the encoder, and the decoder with its cache.

Their inputs and outputs have the names and the order of Hugging Face Optimum's, so that its
`ORTModelForSeq2SeqLM` and transformers.js run them. Optimum's own decoder holds two graphs, for the first
step and for later ones, and chooses by an input. Here one graph does both: the keys and values of the source
are computed for the tokens that the cache does not have: all in the first step, and none in later ones.
"""

from typing import Any

import torch
from torch import Tensor, cat, nn
from transformers import DynamicCache, EncoderDecoderCache


class EncoderGraph(nn.Module):
    """input_ids and attention_mask (batch, source) -> last_hidden_state (batch, source, d_model)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True
        ).last_hidden_state
        return hidden


class DecoderGraph(nn.Module):
    """Tokens and the cache -> their logits, and the cache with these tokens.

    The inputs are encoder_attention_mask (batch, source), input_ids (batch, new), encoder_hidden_states
    (batch, source, d_model), and for each layer the keys and values of the tokens so far (batch, heads,
    tokens, d_kv) and of the source (batch, heads, source, d_kv), all empty in the first step.
    The outputs are logits (batch, new, vocabulary), and the same cache with the new tokens.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.attentions = nn.ModuleList(cross_attentions(model))

    def forward(self, mask: Tensor, input_ids: Tensor, hidden: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        own, source = DynamicCache(), DynamicCache()
        known = past[2].shape[2]
        torch._check(known <= hidden.shape[1])  # or the tracing would take their difference for a constant
        rest = hidden[:, known:]  # the tokens of the source that the cache does not have
        for layer, attention in enumerate(self.attentions):
            states = past[4 * layer : 4 * layer + 4]
            own.update(states[0], states[1], layer)
            keys, values = (split_heads(product(rest), states[2].shape[1]) for product in products(attention))
            source.update(cat([states[2], keys], dim=2), cat([states[3], values], dim=2), layer)
        cache = EncoderDecoderCache(own, source)
        cache.is_updated = dict.fromkeys(range(len(self.attentions)), True)
        output = self.model(
            encoder_outputs=(hidden,),
            attention_mask=mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        layers: Any = zip(own.layers, source.layers, strict=True)
        written = [part for pair in layers for layer in pair for part in (layer.keys, layer.values)]
        return (output.logits, *written)


def cross_attentions(model: Any) -> list[nn.Module]:
    """Return the attention over the source of each decoder layer."""
    decoder = model.get_decoder()
    if hasattr(decoder, "block"):  # T5
        return [block.layer[1].EncDecAttention for block in decoder.block]
    return [layer.encoder_attn for layer in decoder.layers]


def products(attention: Any) -> tuple[Any, Any]:
    """Return the projections of an attention to its keys and values."""
    return (attention.k, attention.v) if hasattr(attention, "k") else (attention.k_proj, attention.v_proj)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split heads: (batch, source, heads * d_kv) -> (batch, heads, source, d_kv)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
