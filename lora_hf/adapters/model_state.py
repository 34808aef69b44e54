"""The record that this package keeps on a model, in one attribute; and a model's adapted layers."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from lora_hf.adapters.backends import backend_for, is_supported
from lora_hf.adapters.config import LoraConfig, Spans
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.adapters.wrappers import named_modules, unwrapped
from lora_hf.errors import UserError

logger = logging.getLogger(__name__)
PEFT_TUNERS = ("peft.tuners.", "peft.peft_model")
"""Modules that define PEFT's layers and models."""
BaseWeights = Callable[[str], Tensor]
"""Layer name -> its W (out, in) before quantization."""


@dataclass(frozen=True)
class BaselineState:
    """The weights of a baseline, such as bottleneck layers, that a model has beside its base."""

    method: str
    settings: dict[str, Any]
    """Arguments that create the weights again."""


@dataclass(frozen=True)
class ModelState:
    """The value of a model's attribute `lora_hf_state`.

    A change replaces it (`update_state`) and never modifies it, so that a rollback restores it together with
    the module's other attributes.
    """

    adapters: Mapping[str, LoraConfig] = field(default_factory=dict)
    """Adapter name -> its configuration."""
    replication: Mapping[str, Spans] = field(default_factory=dict)
    """Stack -> the spans of its own blocks that it was rebuilt from; see `replicate_layers`."""
    baseline: BaselineState | None = None
    has_own_embeddings: bool = False
    """An adapter's file has replaced the embeddings of the base; see `adapters.embeddings`."""
    is_changed: bool = False
    """Its weights were trained, or adapters are merged into them for good: its base's files hold others."""
    base_fingerprint: str | None = None
    """Hash of the checkpoint, or None if the model was not loaded from files."""
    base_settings: str | None = None
    """Hash of the config and the tokenizer in the model's folder; None for a model from elsewhere."""
    base_weights: BaseWeights | None = None
    """The checkpoint's weights of a quantized model, read on demand."""
    rows_probed: frozenset[Any] = frozenset()
    """Modes and sets of adapted layers in which rows can have adapters of their own; see `row_probe`."""
    keeps_apart: bool = False
    """Weights that its class may tie are apart, so Transformers warns when it loads them; see `head`."""
    told: frozenset[str] = frozenset()
    """What was warned of and is not repeated at each call."""
    checkpoint_generation: Any = None
    """The generation settings that the checkpoint brought; see `models.generation`."""


def model_state(model: nn.Module) -> ModelState:
    """Return what is recorded on a model; empty for a model that this package has not changed."""
    state: ModelState = getattr(unwrapped(model), "lora_hf_state", None) or ModelState()
    return state


def update_state(model: nn.Module, **changes: Any) -> None:
    """Replace fields of the model's state."""
    unwrapped(model).lora_hf_state = replace(model_state(model), **changes)  # type: ignore[assignment]


def warn_of_embeddings(model: nn.Module) -> None:
    """Warn that a model without its adapters is not its base, because it has embeddings of an adapter."""
    if model_state(model).has_own_embeddings and is_news(model, "embeddings"):
        logger.warning(
            "the embeddings stay those of an adapter's file, so that the model without adapters is not its "
            "base: load the base again for that"
        )


def is_news(model: nn.Module, topic: str) -> bool:
    """Return whether a warning comes for the first time on a model, and record it."""
    told = model_state(model).told
    update_state(model, told=told | {topic})
    return topic not in told


def adapter_configs(model: nn.Module) -> Mapping[str, LoraConfig]:
    """Return the configurations of a model's adapters, by name.

    Raises:
        UserError: its adapters were added to a part of it, or to a model that it is a part of: those are
            recorded there, and under names of layers that begin there.
    """
    adapters = model_state(model).adapters
    if not adapters:
        _refuse_adapted_part(model)
    return adapters


def _refuse_adapted_part(model: nn.Module) -> None:
    adapted = False
    for path, module in named_modules(model):
        if path and model_state(module).adapters:
            raise UserError(
                f"the adapters {sorted(model_state(module).adapters)} are on a part of the model: give that "
                f"part, model.{path}, or add them to the whole model"
            )
        adapted = adapted or isinstance(module, LoraLayer | SavedModule)
    if adapted:
        raise UserError(
            f"this {type(unwrapped(model)).__name__} is a part of a model with adapters: give the whole "
            "model, to which they were added"
        )


def refuse_peft_modules(model: nn.Module) -> None:
    """Refuse a model that PEFT has changed: an adapter beside PEFT's would be saved as for the bare base.

    Raises:
        UserError: it has layers of PEFT's.
    """
    for name, module in model.named_modules():
        if any(kind.__module__.startswith(PEFT_TUNERS) for kind in type(module).__mro__):
            raise UserError(
                f"the model has adapters of PEFT already ({name or 'the model'} is a "
                f"{type(module).__module__}.{type(module).__name__}): merge them with "
                "peft_model.merge_and_unload() and use the model that it returns, or read their files with "
                "load_adapter"
            )


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers that carry adapters, by their dotted names."""
    return {name: module for name, module in named_modules(model) if isinstance(module, LoraLayer)}


def saved_modules(model: nn.Module) -> dict[str, SavedModule]:
    """Return the layers of which an adapter has a copy, by their dotted names."""
    return {name: module for name, module in named_modules(model) if isinstance(module, SavedModule)}


def modules_of(model: nn.Module, adapter_name: str) -> dict[str, nn.Module]:
    """Return an adapter's own modules by layer name: its method there, or its copy of the layer."""
    held: dict[str, nn.ModuleDict] = {path: layer.adapters for path, layer in lora_layers(model).items()}
    held |= {path: module.copies for path, module in saved_modules(model).items()}
    return {path: own[adapter_name] for path, own in held.items() if adapter_name in own}


def replace_modules(model: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put new modules at every place of the old ones, given by `id`.

    A module can have several places: T5's `shared` is also `embed_tokens` of each stack. A wrapper around an
    old module is replaced as well: a compiled one would call the old module for ever.
    """
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            old = id(unwrapped(child))
            if old in new and new[old] is not module and unwrapped(module) is module:
                module._modules[name] = new[old]


def refuse_merged(model: nn.Module) -> None:
    """Raise a RuntimeError while adapters are merged into the weights."""
    for layer in lora_layers(model).values():
        if layer.merged:
            raise RuntimeError(f"adapters {list(layer.merged)} are merged; call unmerge_adapters first")


def refuse_offloaded(model: nn.Module) -> None:
    """Refuse a model of which accelerate fetches weights from the CPU or the disk while it runs.

    accelerate fetches them by the names that layers had when it was set up, which wrappers change. What the
    layers hold meanwhile are empty tensors.

    Raises:
        UserError: it does, by `device_map`, `offload_folder`, `cpu_offload` or `disk_offload`.
    """
    if (name := offloaded_part(model)) is not None:
        raise UserError(
            f"accelerate keeps weights of {name or 'the model'} on the CPU or the disk (device_map, "
            "offload_folder, cpu_offload) and fetches them while the model runs, but adapters need them "
            "in place: load the model onto one device, with quantized weights if it does not fit"
        )


def offloaded_part(model: nn.Module) -> str | None:
    """Return the path of the first module of which accelerate fetches weights; None if there is none."""
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        if any(getattr(part, "offload", False) for part in getattr(hook, "hooks", [hook])):
            return name
    return None


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable and of all weights; a quantized weight counts with its full shape."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    for base in (backend_for(m) for m in model.modules() if is_supported(m)):
        if base.is_quantized:
            total += base.out_features * base.in_features - base.layer.weight.numel()
    return trainable, total
