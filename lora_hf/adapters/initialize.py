"""The initial factors of one adapter on one layer, and the base weight that they require."""

from typing import NamedTuple

import torch
from torch import Tensor

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.backends.base import StoredWeight
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import lora_scaling, relative_error
from lora_hf.adapters.inits import SHAPE_ONLY, Factors, LoraInit, init_for
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.errors import UserError


class LayerInit(NamedTuple):
    """Initial factors of an adapter's layer, and the base weight that goes with them."""

    factors: LoraInit | None = None
    """A, B and the product they take out of the base; None for a method without factors of its own."""
    base_weight: StoredWeight | None = None
    """The quantized weight that replaces the base's while this adapter is active, or None."""
    errors: tuple[float, float] | None = None
    """Relative errors of the matrix before and after, or None if the initialization does not read it."""


def initialize_layer(config: LoraConfig, base: Backend, original: Tensor | None = None) -> LayerInit:
    """Draw the initial factors at random or compute them from the weight.

    Args:
        config: settings of this layer.
        base: the layer's backend, its weight as loaded.
        original: W (out, in) before quantization; None on a dense base.

    Raises:
        UserError: the layer cannot take the method or the initialization, or `original` is missing.
    """
    name = base.plain_init if config.init_lora_weights is True else config.init_lora_weights
    init, method = init_for(name, config.loftq_iter), ADAPTER_METHODS[config.method]
    method.check(config, base)
    scaling = lora_scaling(config.r, config.lora_alpha, config.use_rslora)
    if name in SHAPE_ONLY:
        shape = torch.empty(base.out_features, base.in_features, device="meta")
        matrix = method.initialized_matrix(shape, config, base)
        return LayerInit(None if matrix is None else init(matrix, config.r, scaling, None))
    if base.is_quantized and original is None:
        raise UserError(
            f"init_lora_weights={name!r} reads the weights before quantization, which this model does not "
            "hold: load the checkpoint before quantization with lora_hf's load_model and load_in_4bit or "
            "load_in_8bit, give inject_adapters(..., base_weights=...), or set it to true or gaussian",
            "init_lora_weights",
        )
    W = base.dequantize(torch.float32) if original is None else original.to(base.device, torch.float32)

    def quantize(weight: Tensor) -> Tensor:
        return base.read(base.requantize(weight))

    matrix = method.initialized_matrix(W, config, base)
    if matrix is None:
        return LayerInit()
    drawn = init(matrix, config.r, scaling, quantize if base.is_quantized else None)
    weight = requantized_base(config, base, drawn.subtracted, original)
    after = base.dequantize(torch.float32) if weight is None else base.read(weight)
    if weight is not None or drawn.subtracted is None:
        after = after + scaling * (drawn.lora_B @ drawn.lora_A)
    errors = relative_error(base.dequantize(torch.float32), W), relative_error(after, W)
    return LayerInit(drawn, weight, errors)


def zero_init(config: LoraConfig, base: Backend) -> LayerInit:
    """Return factors of zeros, for an adapter whose tensors are about to be copied in."""
    shape = torch.empty(base.out_features, base.in_features, device="meta")
    matrix = ADAPTER_METHODS[config.method].initialized_matrix(shape, config, base)
    if matrix is None:
        return LayerInit()
    return LayerInit(
        LoraInit(torch.zeros(config.r, matrix.shape[1]), torch.zeros(base.out_features, config.r))
    )


def requantized_base(
    config: LoraConfig, base: Backend, subtracted: Factors | None, original: Tensor | None
) -> StoredWeight | None:
    """Quantize W - s B' A'; None for a dense base, or an update that is added to groups of W."""
    if subtracted is None or not base.is_quantized or ADAPTER_METHODS[config.method].folds_into_groups:
        return None
    W = base.dequantize(torch.float32) if original is None else original.to(base.device, torch.float32)
    A, B = (factor.to(base.device, torch.float32) for factor in subtracted)
    return base.requantize(W - lora_scaling(config.r, config.lora_alpha, config.use_rslora) * (B @ A))
