"""A T5 decoder that reads one token at a time on a CPU, without Transformers' modules around the products.

A token is small work for a CPU: FLAN-T5-small's matrix products take half of the time that its modules take,
with their caches, masks and shapes. Here each layer is written out, and calls the model's own projections:
adapters, packed weights and quantized layers stay what they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mt5.modeling_mt5 import MT5Block, MT5DenseGatedActDense, MT5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block, T5DenseGatedActDense, T5ForConditionalGeneration

from lora_hf.adapters.layer import LoraLayer
from lora_hf.fast.elementwise import rms_norm
from lora_hf.fast.int8 import FEW_ROWS, Int8Linear
from lora_hf.fast.packed import PackedLinear
from lora_hf.fast.t5 import faster_class, has_gelu

INITIAL_CAPACITY = 64
"""Tokens that the buffers of keys and values can hold; full buffers double."""
MODELS = {T5ForConditionalGeneration: T5Block, MT5ForConditionalGeneration: MT5Block}
"""Class of a model -> class of its blocks."""
GATED = {kind for own in (T5DenseGatedActDense, MT5DenseGatedActDense) for kind in (own, faster_class(own))}
"""Classes of gated feed-forward layers."""
PLAIN = (nn.Linear, PackedLinear, Int8Linear)
"""Layers whose `forward` is called directly: `nn.Module.__call__` only adds the search for hooks."""


def can_step(model: Any, hidden: Tensor, mask: Tensor) -> bool:
    """Return whether `T5Decoder` computes what this model's `forward` does.

    Args:
        model: an encoder-decoder model in evaluation mode.
        hidden: (batch, source length, d_model), the encoder's output.
        mask: (batch, source length), 1 or 0.
    """
    if type(model) not in MODELS:
        return False
    blocks = model.decoder.block
    if any(type(block) is not MODELS[type(model)] for block in blocks):
        return False
    is_usual = hidden.device.type == "cpu" and hidden.dtype in (torch.float32, torch.bfloat16)
    if not is_usual or torch.is_autocast_enabled("cpu") or mask.shape != hidden.shape[:2]:
        return False
    # what a layer's own forward would call: hooks, and forwards that were replaced on the instance
    layers = [module for block in blocks for module in block.modules()]
    return not any(_is_watched(m) for m in (model, model.lm_head, model.decoder.final_layer_norm, *layers))


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class T5Decoder:
    """The decoder of a T5 or mT5 over a batch of sources; rows may leave the batch.

    Keys and values of the source are computed once; those of the tokens lie at the front of larger buffers.
    """

    def __init__(self, model: Any, hidden: Tensor, mask: Tensor) -> None:
        """Compute the source's keys and values; arguments of `can_step`."""
        self._model, self._heads, self._d_kv = model, model.config.num_heads, model.config.d_kv
        stack = model.decoder
        self._embed, self._last_norm, self._head = stack.embed_tokens, stack.final_layer_norm, model.lm_head
        is_scaled = getattr(model.config, "scale_decoder_outputs", False)  # mT5 has no such field
        self._scale = model.config.d_model**-0.5 if is_scaled else 1.0
        self._layers = [_Layer(block) for block in stack.block]
        self._length = 0
        self._mask: Tensor | None = None
        if not mask.all():
            hides = torch.finfo(hidden.dtype).min
            self._mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill_(mask == 0, hides)[
                :, None, None
            ]
        for layer in self._layers:
            layer.source = self._split(layer.cross_k(hidden)), self._split(layer.cross_v(hidden))
            shape = (2, len(hidden), self._heads, INITIAL_CAPACITY, self._d_kv)
            layer.buffer = layer.source[0].new_empty(shape)
        self._bias = self._bias_of(INITIAL_CAPACITY)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read the next token of each row, (batch,), and return its logits, (batch, vocabulary)."""
        at, rows = self._length, len(tokens)
        if at == self._bias.shape[-1]:
            self._grow()
        shape = (rows, self._heads, 1, self._d_kv)
        bias = self._bias[..., self._bias.shape[-1] - at - 1 :]
        x = self._embed(tokens)
        for layer in self._layers:
            query, key, value = layer.qkv(_norm(x, layer.self_norm))
            layer.buffer[0, :, :, at] = key.view(shape[0], self._heads, self._d_kv)
            layer.buffer[1, :, :, at] = value.view(shape[0], self._heads, self._d_kv)
            keys, values = layer.buffer[:, :, :, : at + 1].unbind()
            query = query.view(shape)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
            x = x + layer.o(mixed.view(rows, -1))
            query = layer.cross_q(_norm(x, layer.cross_norm)).view(shape)
            mixed = F.scaled_dot_product_attention(query, *layer.source, attn_mask=self._mask, scale=1.0)
            x = x + layer.cross_o(mixed.view(rows, -1))
            x = x + layer.feed_forward(_norm(x, layer.last_norm))
        self._length += 1
        x = _norm(x, self._last_norm)
        logits: Tensor = self._head(x * self._scale if self._scale != 1 else x)
        return logits

    def keep(self, rows: Tensor, unneeded: int) -> None:
        """Keep these rows, and drop the last `unneeded` positions of the source, which are padding."""
        end = self._layers[0].source[0].shape[2] - unneeded
        for layer in self._layers:
            keys, values = (x[rows, :, :end] for x in layer.source)
            layer.source, layer.buffer = (keys, values), layer.buffer[:, rows]
        if self._mask is not None:
            self._mask = self._mask[rows, ..., :end]
            if not self._mask.any():
                self._mask = None

    def _split(self, x: Tensor) -> Tensor:
        """(batch, length, heads * d_kv) -> (batch, heads, length, d_kv)."""
        return x.view(*x.shape[:2], self._heads, self._d_kv).transpose(1, 2).contiguous()

    def _bias_of(self, capacity: int) -> Tensor:
        """Return the relative bias (1, heads, 1, capacity) of a token for the keys before it and its own."""
        attention = self._model.decoder.block[0].layer[0].SelfAttention
        bias: Tensor = attention.compute_bias(1, capacity, past_seen_tokens=capacity - 1)
        return bias.contiguous()

    def _grow(self) -> None:
        for layer in self._layers:
            layer.buffer = torch.cat([layer.buffer, torch.empty_like(layer.buffer)], dim=3)
        self._bias = self._bias_of(2 * self._bias.shape[-1])


class _Layer:
    """The parts of one decoder block, its keys and values."""

    source: tuple[Tensor, Tensor]
    """Keys and values (batch, heads, source length, d_kv)."""
    buffer: Tensor
    """Keys and values of the tokens, (2, batch, heads, capacity, d_kv)."""

    def __init__(self, block: Any) -> None:
        own, cross, last = block.layer
        self.self_norm, self.cross_norm, self.last_norm = own.layer_norm, cross.layer_norm, last.layer_norm
        self.qkv = _together(*(getattr(own.SelfAttention, name) for name in "qkv"))
        self.o = _call(own.SelfAttention.o)
        self.cross_q, self.cross_k, self.cross_v, self.cross_o = (
            _call(getattr(cross.EncDecAttention, name)) for name in "qkvo"
        )
        self.feed_forward = _feed_forward(last.DenseReluDense)


def _call(layer: Any) -> Callable[[Tensor], Tensor]:
    """Return a function that computes what a projection does, with the least around it."""
    if type(layer) is LoraLayer and (layer.merged or not layer.active):
        layer = layer.base_layer
    call: Callable[[Tensor], Tensor] = layer.forward if type(layer) in PLAIN else layer
    return call


def _feed_forward(layer: Any) -> Callable[[Tensor], Tensor]:
    if type(layer) not in GATED or not has_gelu(layer):
        return _call(layer)
    both, out = _together(layer.wi_0, layer.wi_1), _call(layer.wo)
    wide = layer.wo.weight.dtype == torch.float32  # Transformers keeps it so beside layers in half precision

    def forward(x: Tensor) -> Tensor:
        gate, value = both(x)
        middle = F.gelu(gate, approximate="tanh").mul_(value)
        return out(middle.float() if wide else middle)

    return forward


def _together(*layers: Any) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return a function that computes several projections of one input; int8 ones by one product."""
    calls, bases = [_call(layer) for layer in layers], [_base(layer) for layer in layers]
    if not all(type(base) is Int8Linear and base.bias is None for base in bases):
        return lambda x: [call(x) for call in calls]
    sizes = [base.out_features for base in bases]
    carriers: list[Any] = [
        layer if call is layer else None for call, layer in zip(calls, layers, strict=True)
    ]

    def few(x: Tensor) -> Sequence[Tensor]:
        if len(x) > FEW_ROWS:
            return [call(x) for call in calls]
        outputs = bases[0].packed(*bases[1:]).multiply(x.float()).to(x.dtype).split(sizes, -1)
        return [
            output if layer is None else layer.add_branches(x, output)
            for output, layer in zip(outputs, carriers, strict=True)
        ]

    return few


def _base(layer: Any) -> Any:
    return layer.base_layer if type(layer) is LoraLayer else layer


def _norm(x: Tensor, norm: Any) -> Tensor:
    """T5LayerNorm, by one operation where x has the dtype of the weights."""
    if x.dtype == norm.weight.dtype:
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return rms_norm(x, norm.weight, norm.variance_epsilon)
