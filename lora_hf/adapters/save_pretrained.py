"""`model.save_pretrained` of a model that this package has changed: right, or refused with the remedy.

Transformers would write the wrapped layers under names such as `q.base_layer.weight`, and draw the weights
that it does not find at random when it loads them; a layer of packed integers would load as those integers.
A model's class stays what it was, so the method is replaced on the model itself.
"""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lora_hf.adapters.backends.bitsandbytes import keep_savable
from lora_hf.adapters.backends.quantized import QuantizedLinear
from lora_hf.adapters.model_state import (
    adapter_configs,
    lora_layers,
    model_state,
    replace_modules,
    saved_modules,
)
from lora_hf.adapters.wrappers import NotPlain, is_wrapper, unwrapped, without_segments
from lora_hf.errors import UserError

NAME = "save_pretrained"


def guard_save_pretrained(model: nn.Module) -> None:
    """Replace `save_pretrained` of a model and its parts, such as T5's encoder, while they are not plain.

    Once they are plain again, they have the method of their class.
    """
    model = unwrapped(model)
    for module in model.modules():
        if not hasattr(type(module), NAME):
            continue
        is_plain = not any(isinstance(part, NotPlain) or is_wrapper(part) for part in module.modules())
        if module is model:  # an adapter may consist of embeddings alone
            is_plain = is_plain and not adapter_configs(model) and model_state(model).baseline is None
        if is_plain:
            module.__dict__.pop(NAME, None)
        else:
            module.__dict__[NAME] = SavePretrained(module)


class SavePretrained:
    """The method `save_pretrained` of a model or a part; it follows the model when it is copied or pickled.

    Its reference is weak: in a cycle, a dropped model would occupy its memory until the next collection.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    @property
    def model(self) -> Any:
        """The model.

        Raises:
            UserError: it was dropped before the call, as in `make_model().save_pretrained(directory)`.
        """
        if (model := self._model()) is None:
            raise UserError("save_pretrained: the model no longer exists: keep it in a variable for the call")
        return model

    def __deepcopy__(self, memo: dict[int, Any]) -> "SavePretrained":
        return SavePretrained(memo.get(id(self.model), self.model))

    def __reduce__(self) -> Any:
        return SavePretrained, (self.model,)

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save the plain model with the merged weights, as Transformers' method of this name does.

        Args:
            save_directory: target folder.
            args, kwargs: the other arguments of that method. A `state_dict` is the model's, gathered by the
                caller.

        Raises:
            UserError: the plain model would not write what this one does; nothing is written.
        """
        model = self.model
        check_plain(model)
        method = getattr(type(model), NAME)
        given = signature(method).bind(model, save_directory, *args, **kwargs)
        if (state := given.arguments.get("state_dict")) is not None:
            given.arguments["state_dict"] = plain_state(model, state)
        keep_savable(model)
        with as_plain(model):
            return method(*given.args, **given.kwargs)


def check_plain(model: nn.Module) -> None:
    """Refuse a model that has no plain equivalent in its present state.

    Raises:
        UserError: adapters that are not merged, a baseline's weights, or layers that Transformers lacks.
    """
    layers = lora_layers(model).values()
    packed = next((module for module in model.modules() if isinstance(module, QuantizedLinear)), None)
    copies = saved_modules(model).values()
    adapters = sorted(
        {name for layer in layers for name in layer.adapters} | {n for m in copies for n in m.copies}
    )
    if baseline := model_state(model).baseline:
        raise UserError(
            f"save_pretrained: the model has the weights of method {baseline.method!r}, which no plain model "
            "has: train it with LoraTrainer or `lora-hf train`, which save them"
        )
    if packed is not None:
        remedy = (
            f"save the adapters {adapters} with save_adapter(model, directory), or call "
            "merge_and_unload(model, onto='dequantized') first"
            if adapters
            else "load the model without quantization to save it"
        )
        raise UserError(
            f"save_pretrained: the base is stored as {packed.quantized.format}, which Transformers cannot "
            f"load: {remedy}"
        )
    if any(not layer.enabled for layer in layers):
        raise UserError("save_pretrained: the adapters are disabled; leave disable_adapters first")
    if layers and not any(layer.merged for layer in layers):
        raise UserError(
            f"save_pretrained: the adapters {adapters} are not merged, and a plain model has none: save them "
            "with save_adapter(model, directory), or call merge_adapters(model) first to save the merged "
            "weights (LoraTrainer saves adapters by itself)"
        )


@contextmanager
def as_plain(model: nn.Module) -> Iterator[None]:
    """Inside the block the model has its plain layers in the place of adapted, copied and compiled ones."""
    wrapped = [
        (owner, name, child)
        for owner in model.modules()
        if not is_wrapper(owner)
        for name, child in owner._modules.items()
        if child is not None and is_wrapper(child)
    ]
    plain: dict[nn.Module, nn.Module] = {layer: layer.base_layer for layer in lora_layers(model).values()}
    for module in saved_modules(model).values():
        plain[module] = copy.deepcopy(module.used)
        plain[module].to(next(module.original.parameters()).dtype)
    try:
        for owner, name, child in wrapped:
            owner._modules[name] = unwrapped(child)
        replace_modules(model, {id(wrapper): layer for wrapper, layer in plain.items()})
        yield
    finally:
        replace_modules(model, {id(layer): wrapper for wrapper, layer in plain.items()})
        for owner, name, child in wrapped:
            owner._modules[name] = child


def plain_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of the wrapped model under the names of the plain one."""
    places = {path: f"{path}.base_layer." for path in lora_layers(model)}
    for path, module in saved_modules(model).items():
        places[path] = f"{path}.copies.{module.active}." if module.active else f"{path}.original."
    renamed: dict[str, Tensor] = {}
    for name, tensor in ((without_segments(name), tensor) for name, tensor in state.items()):
        layer = next((path for path in places if name.startswith(f"{path}.")), None)
        if layer is None:
            renamed[name] = tensor
        elif name.startswith(places[layer]):
            renamed[f"{layer}.{name.removeprefix(places[layer])}"] = tensor
    return renamed
