"""Fold adapters into the weights, and take them out again."""

from torch import nn

from lora_hf.adapters.carried import adapter_configs, lora_layers, replace_modules, saved_modules
from lora_hf.adapters.inject import Model


def merge_adapters(model: nn.Module) -> None:
    """Fold the active adapters into the weights, which makes the forward as fast as the plain model's.

    Raises:
        RuntimeError: adapters are merged already.
    """
    for layer in lora_layers(model).values():
        layer.merge(layer.active)


def unmerge_adapters(model: nn.Module) -> None:
    """Put every unmerged weight back, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def merge_and_unload(model: Model) -> Model:
    """Fold the active adapters in for good and take all wrappers off; returns the plain model."""
    plain: dict[int, nn.Module] = {}
    for layer in lora_layers(model).values():
        if not layer.merged:
            layer.merge(layer.active)
        plain[id(layer)] = layer.base_layer
    for module in saved_modules(model).values():
        plain[id(module)] = module.used
    replace_modules(model, plain)
    adapter_configs(model).clear()
    return model
