"""Add adapters to a model and remove them: every change of a model's structure is made here.

The model keeps its class and its forward; only the targeted layers are wrapped. So the Trainer still
sees the signature it inspects, and a model without its adapters is the model that was loaded.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean
from typing import TypeVar

from torch import nn

from lora_hf.adapters.active import set_adapter
from lora_hf.adapters.attention_type import keep_attention_type
from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.default_targets import doubts, with_names
from lora_hf.adapters.initialize import LayerInit, initialize_layer
from lora_hf.adapters.inits import SHAPE_ONLY
from lora_hf.adapters.layer import LoraLayer, check_adapter_name, shared_parameters
from lora_hf.adapters.layer_replication import name_before_replication, replicate_layers
from lora_hf.adapters.model_state import (
    BaseWeights,
    adapter_configs,
    lora_layers,
    model_state,
    refuse_merged,
    refuse_offloaded,
    refuse_peft_modules,
    replace_modules,
    saved_modules,
    update_state,
    warn_of_embeddings,
)
from lora_hf.adapters.module_names import identity
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.adapters.rollback import rolled_back_on_error
from lora_hf.adapters.save_pretrained import guard_save_pretrained
from lora_hf.adapters.targets import find_saved, find_targets
from lora_hf.adapters.wrappers import refuse_synchronized, unwrapped
from lora_hf.errors import UserError

Model = TypeVar("Model", bound=nn.Module)
InitializeLayer = Callable[[str, LoraConfig, LoraLayer], LayerInit]
logger = logging.getLogger(__name__)


def inject_adapters(
    model: Model,
    config: LoraConfig,
    adapter_name: str = "default",
    *,
    base_weights: BaseWeights | None = None,
    initialize: InitializeLayer | None = None,
) -> Model:
    """Wrap the targeted layers in place, freeze everything else, and return the model.

    At initialization the model's outputs are bit for bit unchanged (on a quantized base, an initialization
    that reads the weights brings them nearer to the unquantized model's). The new adapter is the only active
    one, and the only trainable one.

    Args:
        model: any module.
        config: the adapter's method, rank, scale, dropout and targets.
        adapter_name: its name; several adapters can share one base.
        base_weights: layer name -> weight before quantization, for initializations that read it on a
            quantized base; None takes those that `load_model` has recorded.
        initialize: replaces `initialize_layer`, for adapters that are loaded.

    Raises:
        UserError: an argument of another type, a target that matches nothing or cannot take this adapter, or
            an adapter of this name exists; the model is then unchanged.
    """
    for name, value, kind in (("model", model, nn.Module), ("config", config, LoraConfig)):
        if not isinstance(value, kind):
            given = f"{type(value).__module__}.{type(value).__name__}"
            wanted = (
                "torch.nn.Module" if name == "model" else "lora_hf.LoraConfig, whose fields have PEFT's names"
            )
            raise UserError(f"{name} is a {given}: give a {wanted}")
    check_adapter_name(adapter_name)
    if initialize is None:  # a loaded adapter may stay frozen
        refuse_synchronized(model)
    if adapter_name in adapter_configs(model):
        raise UserError(f"the model already has an adapter {adapter_name!r}; delete it or use another name")
    if baseline := model_state(model).baseline:
        raise UserError(
            f"the model already has the weights of method {baseline.method!r}; load the base again"
        )
    refuse_merged(model)
    refuse_peft_modules(model)
    refuse_offloaded(model)
    with rolled_back_on_error(model):
        _inject(unwrapped(model), config, adapter_name, base_weights, initialize)
    keep_attention_type(unwrapped(model))
    if model_state(model).is_changed and initialize is None:  # a new one
        logger.warning(
            "the model's weights are not those of its base's files any more: they were trained, or hold a "
            "merged adapter. Write it by model.save_pretrained(FOLDER). Adapter %r is for that model: its "
            "files will name no base, so give FOLDER as the base when it is loaded",
            adapter_name,
        )
    return model


def _inject(
    model: nn.Module,
    config: LoraConfig,
    name: str,
    base_weights: BaseWeights | None,
    initialize: InitializeLayer | None,
) -> None:
    state = model_state(model)
    if config.layer_replication:
        replicate_layers(model, config.layer_replication)
    elif state.replication:  # replicated before: the adapter's layer names count the new blocks
        config = replace(config, layer_replication=dict(state.replication))
    config = with_names(model, config)
    strict = initialize is None  # a saved adapter has been compared with its file
    targets, saved = find_targets(model, config, strict), find_saved(model, config, strict)
    for doubt in doubts(model, config, targets) if strict else ():
        logger.warning("%s", doubt)
    keep_differentiable(model)
    layers = {path: m if isinstance(m, LoraLayer) else LoraLayer(m) for path, m in targets.items()}
    inits = _initialize(layers, config, base_weights_of(model, base_weights), initialize)
    shared = shared_parameters(config, list(layers.values())) if layers else {}
    model.requires_grad_(False)
    for path, layer in layers.items():
        layer.add(name, config.at(path), inits[path], shared)
        layer.train(targets[path].training)
    put_in_place(model, {identity(targets[path]): layer for path, layer in layers.items()})
    _add_saved(model, saved, name)
    update_state(model, adapters={**state.adapters, name: config})
    set_adapter(model, name)
    guard_save_pretrained(model)


def base_weights_of(model: nn.Module, given: BaseWeights | None) -> BaseWeights | None:
    """Return a reader of the weights before quantization; the copy of a block has its source's weights."""
    read = given or model_state(model).base_weights
    if read is None:
        return None
    return lambda name: read(name_before_replication(model, name))


def _initialize(
    layers: Mapping[str, LoraLayer],
    config: LoraConfig,
    base_weights: BaseWeights | None,
    initialize: InitializeLayer | None,
) -> dict[str, LayerInit]:
    """Initialize every layer before anything of the model is changed: an initialization can be refused."""
    inits = {}
    for name, layer in layers.items():
        settings = config.at(name)
        layer.activate({})  # the base weight as loaded
        try:
            if initialize is not None:
                inits[name] = initialize(name, settings, layer)
            else:
                reads = layer.base.is_quantized and settings.init_lora_weights not in SHAPE_ONLY
                original = base_weights(name) if base_weights and reads else None
                inits[name] = initialize_layer(settings, layer.base, original)
        except UserError as error:
            raise UserError(f"{error} (layer {name})", error.field) from None
    _report([init.errors for init in inits.values() if init.errors], config)
    return inits


def _report(errors: list[tuple[float, float]], config: LoraConfig) -> None:
    if errors:
        before, after = (mean(pair[i] for pair in errors) for i in (0, 1))
        logger.info(
            "%s: mean relative error of %d weights %.4f before, %.4f after",
            *(config.init_lora_weights, len(errors), before, after),
        )


def _add_saved(model: nn.Module, saved: dict[str, nn.Module], adapter_name: str) -> None:
    for name, module in saved.items():
        if not isinstance(module, SavedModule) and lora_layers(module):
            raise UserError(
                f"modules_to_save: {name} contains a layer with another adapter, which its copy would "
                "contain too; delete that adapter first, or leave the layer out",
                "modules_to_save",
            )
    wrappers = {
        identity(module): module if isinstance(module, SavedModule) else SavedModule(module)
        for module in saved.values()
    }
    for wrapper in wrappers.values():
        wrapper.add(adapter_name)
    put_in_place(model, wrappers)


def put_in_place(model: nn.Module, wrappers: Mapping[int, nn.Module]) -> None:
    """Put each wrapper at every place of its layer, given by the layer's `identity`."""
    if not wrappers:
        return
    new = {id(m): wrappers[identity(m)] for m in model.modules() if identity(m) in wrappers}
    replace_modules(model, new)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove an adapter; a layer without adapters becomes the plain layer again.

    Embeddings that an adapter's file has put in the place of the base's stay, with a warning.

    Raises:
        UserError: the model has no such adapter.
        RuntimeError: adapters are merged into the weights.
    """
    if name not in adapter_configs(model):
        raise UserError(f"no adapter {name!r} to delete; the model has {sorted(adapter_configs(model))}")
    refuse_merged(model)
    warn_of_embeddings(model)
    for layer in lora_layers(model).values():
        layer.remove(name)
    for module in saved_modules(model).values():
        module.remove(name)
    bare: dict[int, nn.Module] = {id(x): x.base_layer for x in lora_layers(model).values() if not x.adapters}
    bare |= {id(x): x.original for x in saved_modules(model).values() if not x.copies}
    replace_modules(model, bare)
    update_state(model, adapters={n: c for n, c in adapter_configs(model).items() if n != name})
    guard_save_pretrained(model)
