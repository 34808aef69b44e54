"""The start of one adapter on one layer: its factors, and how the base must be stored for them."""

from typing import NamedTuple

import torch
from torch import Tensor

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.backends.base import Stored
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import lora_scaling, relative_error
from lora_hf.adapters.inits import BLIND, Factors, LoraInit, init_for
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.errors import UserError


class Start(NamedTuple):
    """What a layer needs to begin with an adapter.

    Attributes:
        init: A, B and what they take over.
        stored: the base as this adapter wants it, or None where it is left as it is.
        errors: relative errors of the matrix before and after, or None for a start that does not read it.
    """

    init: LoraInit
    stored: Stored | None = None
    errors: tuple[float, float] | None = None


def draw_start(config: LoraConfig, base: Backend, original: Tensor | None = None) -> Start:
    """A start from random numbers or from the weight.

    Args:
        config: of this layer.
        base: the layer as it is stored without this adapter.
        original: W (out, in) before quantization; None on a dense base.

    Raises:
        UserError: the store cannot carry the method or the start, or `original` is missing.
    """
    name = base.plain_init if config.init_lora_weights is True else config.init_lora_weights
    init, method = init_for(name, config.loftq_iter), ADAPTER_METHODS[config.method]
    scaling = lora_scaling(config.r, config.lora_alpha, config.use_rslora)
    if name in BLIND:
        seen = method.view(torch.empty(base.out_features, base.in_features, device="meta"), config, base)
        return Start(init(seen, config.r, scaling, None))
    if base.is_quantized and original is None:
        raise UserError(
            f"lora.init_lora_weights={name!r} needs the weights before quantization, which this store has "
            "lost; give inject_adapters(..., originals=...), or load the base with lora_hf's load_model"
        )
    W = base.dequantize(torch.float32) if original is None else original.to(base.device, torch.float32)

    def quantize(weight: Tensor) -> Tensor:
        return base.read(base.requantize(weight))

    seen = method.view(W, config, base)
    drawn = init(seen, config.r, scaling, quantize if base.is_quantized else None)
    stored = restore(config, base, drawn.subtracted, original)
    after = base.dequantize(torch.float32) if stored is None else base.read(stored)
    if stored is not None or drawn.subtracted is None:
        after = after + scaling * (drawn.lora_B @ drawn.lora_A)
    return Start(drawn, stored, (relative_error(base.dequantize(torch.float32), W), relative_error(after, W)))


def restore(
    config: LoraConfig, base: Backend, subtracted: Factors | None, original: Tensor | None
) -> Stored | None:
    """The store of W - s B' A', where the base is quantized and the update is a matrix of its own size."""
    if subtracted is None or not base.is_quantized or config.use_qalora:
        return None
    W = base.dequantize(torch.float32) if original is None else original.to(base.device, torch.float32)
    A, B = (factor.to(base.device, torch.float32) for factor in subtracted)
    return base.requantize(W - lora_scaling(config.r, config.lora_alpha, config.use_rslora) * (B @ A))
