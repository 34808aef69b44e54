"""How a base is loaded into fewer bits: bitsandbytes' own way, or layer by layer into the affine store."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING as MODEL_CLASSES
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from lora_hf.adapters.backends.affine import AffineLinear
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError


def bitsandbytes_config(config: ModelConfig, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """What `from_pretrained` is given for NF4, FP4 and int8.

    T5 casts what enters `wo` to `wo.weight.dtype` unless that is int8. Packed 4-bit weights are uint8, and
    activations rounded to that leave garbage (a cosine of 0.06 with the dense model's logits, not 0.98):
    where `wo` is quantized, the same bits are kept as int8.
    """
    if config.load_in_8bit:
        # A warning a layer and a step, that activations are rounded to float16 on their way to int8.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=torch.int8 if config.quantize_wo else torch.uint8,
    )


@contextmanager
def nothing_kept_dense(settings: PretrainedConfig) -> Iterator[None]:
    """While a model of these settings loads, its class's its `_keep_in_fp32_modules` (T5's: `wo`) is empty.

    Transformers quantizes none of these and has no argument to say otherwise. The list is a class's, and the
    encoder and decoder stacks read it too, so that it is emptied where it is defined.
    """
    model_class: Any = MODEL_CLASSES.get(type(settings), PreTrainedModel)
    owner: Any = next(c for c in model_class.__mro__ if "_keep_in_fp32_modules" in vars(c))
    kept, owner._keep_in_fp32_modules = owner._keep_in_fp32_modules, None
    try:
        yield
    finally:
        owner._keep_in_fp32_modules = kept


def quantize_affine_layers(model: Any, config: ModelConfig, device: torch.device) -> None:
    """Replace the linear layers by `AffineLinear`, each quantized on `device`; the head stays dense.

    One layer after another, from a model in the CPU's memory: the device never holds the dense model.

    Raises:
        UserError: the groups do not fit a layer, or `hqq` is not installed.
    """
    layers = affine_layers(model, config)
    while layers:  # emptied as it goes, or it would hold every dense weight to the end
        name = next(iter(layers))
        layer = layers.pop(name).to(device)
        model.set_submodule(name, AffineLinear.from_linear(layer, config.hqq_group_size))


def affine_layers(model: Any, config: ModelConfig) -> dict[str, nn.Linear]:
    """The layers that get quantized, by name.

    Raises:
        UserError: the groups do not fit one.
    """
    kept = set() if config.quantize_wo else set(model._keep_in_fp32_modules or ())
    head = model.get_output_embeddings()
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer is not head and kept.isdisjoint(name.split("."))
    }
    _check_groups(layers, config.hqq_group_size)
    return layers


def _check_groups(layers: dict[str, nn.Linear], group_size: int) -> None:
    fitting = gcd(*(layer.in_features for layer in layers.values()))
    for name, layer in layers.items():
        columns = layer.in_features
        if columns % group_size or group_size % 2:
            raise UserError(
                f"model.hqq_group_size={group_size} must be even and divide the {columns} inputs of layer "
                f"{name}; every layer of this model takes {fitting}, or an even number that divides it"
            )


def weight_bytes(layer: nn.Module) -> int:
    """Bytes of a linear layer's weight as it is stored, scales and code books counted, without the bias."""
    weight: Any = layer.weight
    packed = getattr(weight, "quant_state", None)
    int8 = getattr(layer, "state", None)  # has the scales from the first forward on; before, the weight has
    holders = (layer, weight, int8, packed, getattr(packed, "state2", None))
    names = ("scale", "offset", "SCB", "absmax", "code")
    parts = [weight, *(getattr(holder, name, None) for holder in holders for name in names)]
    return sum(part.nbytes for part in {id(part): part for part in parts if part is not None}.values())
