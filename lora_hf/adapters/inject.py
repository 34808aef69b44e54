"""Put adapters into a model and steer them: every change of a model's structure is made here.

The model keeps its class and its forward; only the targeted layers are wrapped. So the Trainer still
sees the signature it inspects, and a model without its adapters is the model that was loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from lora_hf.adapters.backends.bnb import keep_differentiable
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.layer import LoraLayer, check_adapter_name
from lora_hf.adapters.methods import METHODS
from lora_hf.adapters.targets import find_targets
from lora_hf.errors import UserError

Model = TypeVar("Model", bound=nn.Module)


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that carry adapters, by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_configs(model: nn.Module) -> dict[str, LoraConfig]:
    """The adapters a model carries, by name; written by this module alone."""
    if not hasattr(model, "lora_hf_adapters"):
        model.lora_hf_adapters = {}  # type: ignore[assignment]
    return model.lora_hf_adapters  # type: ignore[return-value]


def inject_adapters(model: Model, config: LoraConfig, adapter_name: str = "default") -> Model:
    """Wrap the targeted layers in place, freeze everything else, and return the model.

    The start is the identity: the model's outputs are bit for bit what they were. The new adapter is the
    only active one, and the only one that trains.

    Args:
        model: any module; its floating-point and 4-bit linear layers can be targets.
        config: the adapter's rank, scale, dropout and targets.
        adapter_name: its name, with which several can share one base.

    Raises:
        UserError: a target that matches nothing, or an adapter of this name already there.
    """
    check_adapter_name(adapter_name)
    if adapter_name in adapter_configs(model):
        raise UserError(
            f"the model has an adapter {adapter_name!r} already; delete it or choose another name"
        )
    if any(layer.merged for layer in lora_layers(model).values()):
        raise RuntimeError("adapters are merged into the model; call unmerge_adapters first")
    targets = find_targets(model, config)
    model.requires_grad_(False)
    keep_differentiable(model)
    for name, module in targets.items():
        layer = module if isinstance(module, LoraLayer) else LoraLayer(module)
        layer.adapters[adapter_name] = METHODS["lora"](config, layer.base, layer.weight.device)
        layer.train(module.training)
        model.set_submodule(name, layer)
    adapter_configs(model)[adapter_name] = config
    set_adapter(model, adapter_name)
    return model


def set_adapter(model: nn.Module, names: str | Sequence[str]) -> None:
    """Make these adapters the active ones, and the only ones that train.

    Raises:
        UserError: the model has no adapter of one of the names.
        RuntimeError: adapters are merged into the weights at the moment.
    """
    chosen = (names,) if isinstance(names, str) else tuple(names)
    known = adapter_configs(model)
    for name in chosen:
        if name not in known:
            raise UserError(f"no adapter {name!r} in the model; it has {sorted(known)}")
    for layer in lora_layers(model).values():
        if layer.merged:
            raise RuntimeError(f"adapters {list(layer.merged)} are merged; call unmerge_adapters first")
        layer.active = chosen
        for name, method in layer.adapters.items():
            method.requires_grad_(name in chosen)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove an adapter; a layer left without any becomes the plain layer it was.

    Raises:
        UserError: the model has no such adapter.
        RuntimeError: adapters are merged into the weights at the moment.
    """
    if name not in adapter_configs(model):
        raise UserError(f"no adapter {name!r} to delete; the model has {sorted(adapter_configs(model))}")
    for path, layer in lora_layers(model).items():
        if layer.merged:
            raise RuntimeError(f"adapters {list(layer.merged)} are merged; call unmerge_adapters first")
        layer.active = tuple(n for n in layer.active if n != name)
        if name in layer.adapters:
            del layer.adapters[name]
        if not layer.adapters:
            model.set_submodule(path, layer.base_layer)
    del adapter_configs(model)[name]


def merge_adapters(model: nn.Module) -> None:
    """Fold the active adapters into the weights, which makes the forward as fast as the plain model's.

    Raises:
        RuntimeError: adapters are merged already.
    """
    for layer in lora_layers(model).values():
        layer.merge(layer.active)


def unmerge_adapters(model: nn.Module) -> None:
    """Put every pristine weight back, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def merge_and_unload(model: Model) -> Model:
    """Fold the active adapters in for good and take all wrappers off; returns the plain model."""
    for path, layer in lora_layers(model).items():
        if not layer.merged:
            layer.merge(layer.active)
        model.set_submodule(path, layer.base_layer)
    adapter_configs(model).clear()
    return model


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is its untouched base, merged adapters included."""
    layers = list(lora_layers(model).values())
    was_merged = [layer.merged for layer in layers]
    was_enabled = [layer.enabled for layer in layers]
    for layer in layers:
        layer.unmerge()
        layer.enabled = False
    try:
        yield
    finally:
        for layer, merged, enabled in zip(layers, was_merged, was_enabled, strict=True):
            layer.enabled = enabled
            layer.merge(merged)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and total numbers of weights; a 4-bit weight counts as the numbers it stands for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(_logical_size(p) for p in model.parameters())
    return trainable, total


def _logical_size(parameter: nn.Parameter) -> int:
    quant_state = getattr(parameter, "quant_state", None)
    return parameter.numel() if quant_state is None else quant_state.shape.numel()
