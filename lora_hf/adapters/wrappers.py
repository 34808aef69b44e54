"""Modules that wrap a model or a part of it, and the names without them.

`torch.compile`, data parallelism and activation checkpointing put a module around another one, which adds a
segment to the name of everything below: `encoder.block.0._orig_mod.layer.0...`. Names in files and
configurations are those of the unwrapped model, so that wrapped and plain models read each other's files.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

from torch import nn

from lora_hf.errors import UserError

WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": (
        "_checkpoint_wrapped_module"
    ),
}
"""Full name of a wrapper's class -> its attribute that holds the wrapped module."""
SYNCHRONIZING = ("DistributedDataParallel", "FullyShardedDataParallel")
"""Wrappers that register the trainable parameters when they are created."""
_SEGMENT = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\\?\.")
_ADAPTER_NAME = re.compile(  # PEFT's parameters in a state dict: `.lora_A.default.weight`
    r"\.(lora_[AB]|lora_magnitude_vector)\.[^.]+(?=\.weight$)"
    r"|\.(lora_embedding_[AB]|lora_magnitude_vector|vera_lambda_[bd])\.(?!weight$)[^.]+$"
)
T = TypeVar("T")


@cache
def _attribute(kind: type) -> str | None:
    names = (f"{c.__module__}.{c.__qualname__}" for c in kind.__mro__)
    return next((WRAPPERS[name] for name in names if name in WRAPPERS), None)


def is_wrapper(module: nn.Module) -> bool:
    """Return whether a module is around another one, whose names it extends."""
    kind: Any = type(module)
    return _attribute(kind) is not None


def unwrapped(module: T) -> T:
    """Return the module inside all wrappers; a module without wrappers is returned unchanged."""
    held: Any = module
    kind: Any = type(held)
    while (attribute := _attribute(kind)) is not None:
        held = held._modules[attribute]
        kind = type(held)
    inner: T = held
    return inner


def named_modules(
    module: nn.Module, prefix: str = "", remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Yield what `module.named_modules` does, without wrappers, which are replaced by what they hold."""
    seen: set[int] = set()
    waiting = [(prefix, module)]
    while waiting:
        path, held = waiting.pop()
        held = unwrapped(held)
        if remove_duplicate and id(held) in seen:
            continue
        seen.add(id(held))
        yield path, held
        for name, child in reversed(held._modules.items()):
            if child is not None:
                waiting.append((f"{path}.{name}" if path else name, child))


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by their names without wrappers, each once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, owner in named_modules(module):
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (f"{path}.{name}" if path else name, parameter))
    return dict(found.values())


def get_submodule(module: nn.Module, path: str) -> nn.Module:
    """Return the module of this name; errors as `nn.Module.get_submodule`."""
    found = unwrapped(module)
    for name in path.split(".") if path else ():
        found = unwrapped(found.get_submodule(name))
    return found


def set_submodule(module: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of the one of this name, and of the wrapper around it."""
    parent, _, name = path.rpartition(".")
    get_submodule(module, parent)._modules[name] = new


def without_segments(name: Any) -> Any:
    """Return a layer name, or a regular expression, without the segments of wrappers."""
    return _SEGMENT.sub("", name) if isinstance(name, str) else name


def plain_keys(model: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """Return each key of a file -> the same key without wrappers and without the adapter's name.

    Raises:
        UserError: two keys stand for one tensor.
    """
    keys = list(keys)
    has_child = hasattr(unwrapped(model), "module")  # then the segment belongs to the model's own name
    plain: dict[str, str] = {}
    for key in keys:
        name = _ADAPTER_NAME.sub(lambda match: f".{match[1] or match[2]}", without_segments(key))
        if not has_child:
            name = re.sub(r"^(module\.)?(base_model\.model\.)?(module\.)?", r"\2", name)
        if name in plain:
            raise UserError(
                f"the file has two tensors for {name}: {plain[name]} and {key}. It may hold "
                "several adapters: save each one by itself"
            )
        plain[name] = key
    return {key: name for name, key in plain.items()}


def refuse_synchronized(model: nn.Module) -> None:
    """Refuse to add trainable weights to a model that synchronizes those of its creation.

    Raises:
        UserError: it does: the gradients of new weights would differ between the processes.
    """
    for module in model.modules():
        name = next((c.__name__ for c in type(module).__mro__ if c.__name__ in SYNCHRONIZING), None)
        if name is not None:
            raise UserError(
                f"the model is wrapped in {name}, which would not synchronize the gradients of new weights: "
                "add adapters before wrapping it"
            )


class NotPlain(nn.Module):
    """A module that no plain model has: Transformers must not write its tensors.

    `save_pretrained` of the model that was changed puts plain modules in its place (`save_pretrained.py`).
    That of a part, or of a larger model around it, would write names that no model has, such as
    `q.base_layer.weight`, and what loads them would draw the weights at random.
    """

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_name == "save_pretrained" and code.co_filename.endswith("modeling_utils.py"):
                raise UserError(
                    f"save_pretrained: {prefix.removesuffix('.')} is a {type(self).__name__}, which no plain "
                    "model has: call save_pretrained of the model that lora_hf loaded or changed, or "
                    "save_adapter with it; after merge_and_unload every part can be saved"
                )
            frame = frame.f_back  # type: ignore[assignment]
        super()._save_to_state_dict(destination, prefix, keep_vars)
