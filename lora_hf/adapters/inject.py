"""Put adapters into a model and steer them: every change of a model's structure is made here.

The model keeps its class and its forward; only the targeted layers are wrapped. So the Trainer still
sees the signature it inspects, and a model without its adapters is the model that was loaded.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean
from typing import TypeVar

from torch import Tensor, nn

from lora_hf.adapters.active import set_adapter
from lora_hf.adapters.backends.bnb import keep_differentiable
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.initialize import Start, draw_start
from lora_hf.adapters.inits import BLIND
from lora_hf.adapters.layer import LoraLayer, check_adapter_name
from lora_hf.adapters.layer_replication import name_before_replication, replicate_layers, replication
from lora_hf.adapters.model_state import (
    adapter_configs,
    lora_layers,
    refuse_merged,
    replace_modules,
    saved_modules,
)
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.adapters.rollback import undone_on_error
from lora_hf.adapters.targets import find_saved, find_targets, identity
from lora_hf.errors import UserError

Model = TypeVar("Model", bound=nn.Module)
Originals = Callable[[str], Tensor]
"""Layer name -> its W (out, in) before quantization."""
DrawStart = Callable[[str, LoraConfig, LoraLayer], Start]
BASELINE = "lora_hf_extras"
"""The attribute that says that a model carries a baseline's weights."""
logger = logging.getLogger(__name__)


def inject_adapters(
    model: Model,
    config: LoraConfig,
    adapter_name: str = "default",
    *,
    originals: Originals | None = None,
    draw: DrawStart | None = None,
) -> Model:
    """Wrap the targeted layers in place, freeze everything else, and return the model.

    The start is the identity: the model's outputs are bit for bit what they were (on a quantized base,
    a start that reads the weights brings them nearer to the unquantized model's). The new adapter is the
    only active one, and the only one that trains.

    Args:
        model: any module.
        config: the adapter's method, rank, scale, dropout and targets.
        adapter_name: its name, with which several can share one base.
        originals: gives the weights before quantization, for the starts that read them on a quantized
            base; None takes `model.original_weights` where there is one.
        draw: makes a layer's start in the place of `draw_start`; for adapters that are loaded.

    Raises:
        UserError: a target that matches nothing or cannot carry this adapter, or an adapter of this name
            already there; the model is then as it was.
    """
    check_adapter_name(adapter_name)
    if adapter_name in adapter_configs(model):
        raise UserError(
            f"the model has an adapter {adapter_name!r} already; delete it or choose another name"
        )
    if held := getattr(model, BASELINE, None):
        raise UserError(f"the model has the weights of method {held['method']!r} already; load the base anew")
    refuse_merged(model)
    with undone_on_error(model):
        _inject(model, config, adapter_name, originals, draw)
    return model


def _inject(
    model: nn.Module, config: LoraConfig, name: str, originals: Originals | None, draw: DrawStart | None
) -> None:
    if config.layer_replication:
        replicate_layers(model, config.layer_replication)
    elif replication(model):  # by hand, before: the adapter's names count the new blocks
        config = replace(config, layer_replication=replication(model))
    targets, saved = find_targets(model, config), find_saved(model, config)
    keep_differentiable(model)
    starts = _draw_starts(targets, config, originals_of(model, originals), draw)
    model.requires_grad_(False)
    for path, (layer, settings, start) in starts.items():
        layer.add(name, settings, start)
        layer.train(targets[path].training)
    put_in_place(model, {identity(targets[path]): layer for path, (layer, _, _) in starts.items()})
    _add_saved(model, saved, name)
    adapter_configs(model)[name] = config
    set_adapter(model, name)


def originals_of(model: nn.Module, given: Originals | None) -> Originals | None:
    """What gives the weights before quantization; a copy of a block has its source's."""
    found: Originals | None = given or getattr(model, "original_weights", None)
    if found is None:
        return None
    return lambda name: found(name_before_replication(model, name))


def _draw_starts(
    targets: dict[str, nn.Module], config: LoraConfig, originals: Originals | None, draw: DrawStart | None
) -> dict[str, tuple[LoraLayer, LoraConfig, Start]]:
    """Every layer's start, before anything of the model is changed: a start can be refused."""
    starts = {}
    for name, module in targets.items():
        layer = module if isinstance(module, LoraLayer) else LoraLayer(module)
        settings = config.at(name)
        layer.activate({})  # the base as it was loaded
        try:
            if draw is not None:
                start = draw(name, settings, layer)
            else:
                reads = layer.base.is_quantized and settings.init_lora_weights not in BLIND
                original = originals(name) if originals and reads else None
                start = draw_start(settings, layer.base, original)
        except UserError as error:
            raise UserError(f"{error} (layer {name})") from None
        starts[name] = layer, settings, start
    _report({name: start.errors for name, (_, _, start) in starts.items() if start.errors}, config)
    return starts


def _report(errors: dict[str, tuple[float, float]], config: LoraConfig) -> None:
    if errors:
        before, after = (mean(pair[i] for pair in errors.values()) for i in (0, 1))
        logger.info(
            "%s: mean relative error of %d weights %.4f before, %.4f after",
            *(config.init_lora_weights, len(errors), before, after),
        )


def _add_saved(model: nn.Module, saved: dict[str, nn.Module], adapter_name: str) -> None:
    for name, module in saved.items():
        if not isinstance(module, SavedModule) and lora_layers(module):
            raise UserError(
                f"lora.modules_to_save: {name} carries another adapter, and its copy would carry it too; "
                "delete that one first, or leave the layer out"
            )
    wrappers = {
        identity(module): module if isinstance(module, SavedModule) else SavedModule(module)
        for module in saved.values()
    }
    for wrapper in wrappers.values():
        wrapper.add(adapter_name)
    put_in_place(model, wrappers)


def put_in_place(model: nn.Module, wrappers: Mapping[int, nn.Module]) -> None:
    """Put each wrapper wherever its layer stands, by the layers' `identity`."""
    new = {id(m): wrappers[identity(m)] for m in model.modules() if identity(m) in wrappers}
    replace_modules(model, new)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove an adapter; a layer left without any becomes the plain layer it was.

    Raises:
        UserError: the model has no such adapter.
        RuntimeError: adapters are merged into the weights at the moment.
    """
    if name not in adapter_configs(model):
        raise UserError(f"no adapter {name!r} to delete; the model has {sorted(adapter_configs(model))}")
    refuse_merged(model)
    for layer in lora_layers(model).values():
        layer.remove(name)
    for module in saved_modules(model).values():
        module.remove(name)
    bare: dict[int, nn.Module] = {id(x): x.base_layer for x in lora_layers(model).values() if not x.adapters}
    bare |= {id(x): x.original for x in saved_modules(model).values() if not x.copies}
    replace_modules(model, bare)
    del adapter_configs(model)[name]
