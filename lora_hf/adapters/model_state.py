"""What a model carries: its adapted layers, by name, and the adapters' configs."""

from collections.abc import Mapping

from torch import nn

from lora_hf.adapters.backends import backend_for, is_supported
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.modules_to_save import SavedModule


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that carry adapters, by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def saved_modules(model: nn.Module) -> dict[str, SavedModule]:
    """The layers of which an adapter has a copy, by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SavedModule)}


def modules_of(model: nn.Module, adapter_name: str) -> dict[str, nn.Module]:
    """What one adapter has of its own, by the layer's name: its factors, or its copy of the layer."""
    held: dict[str, nn.ModuleDict] = {path: layer.adapters for path, layer in lora_layers(model).items()}
    held |= {path: module.copies for path, module in saved_modules(model).items()}
    return {path: own[adapter_name] for path, own in held.items() if adapter_name in own}


def adapter_configs(model: nn.Module) -> dict[str, LoraConfig]:
    """The adapters a model carries, by name; written by this module alone."""
    if not hasattr(model, "lora_hf_adapters"):
        model.lora_hf_adapters = {}  # type: ignore[assignment]
    return model.lora_hf_adapters  # type: ignore[return-value]


def replace_modules(model: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put new modules wherever the old ones stand: T5's `shared` is also each stack's `embed_tokens`."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if id(child) in new and new[id(child)] is not module:
                module._modules[name] = new[id(child)]


def refuse_merged(model: nn.Module) -> None:
    """Raise a RuntimeError while adapters are merged into the weights."""
    for layer in lora_layers(model).values():
        if layer.merged:
            raise RuntimeError(f"adapters {list(layer.merged)} are merged; call unmerge_adapters first")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and total numbers of weights; a quantized weight counts as the numbers it stands for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    for base in (backend_for(m) for m in model.modules() if is_supported(m)):
        if base.is_quantized:
            total += base.out_features * base.in_features - base.layer.weight.numel()
    return trainable, total
