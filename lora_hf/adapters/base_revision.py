"""Find the commit of a base that a script has loaded from the Hub by `from_pretrained`.

Transformers does not record it. Without it, an adapter of another revision than `main` would be read on
`main`, whose weights differ.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.module_names import own_modules
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.files import hub_copies

COMPARED = 8
"""Rows of each weight that are compared with the file's."""


def base_revision(model: nn.Module) -> str | None:
    """Return the commit of a model's base: the recorded one, or that of the local copy with its values.

    Args:
        model: a Transformers model, with or without adapters; the commit is recorded in its config.

    Returns:
        None for a model that is not from the Hub, or whose values are in no local copy.
    """
    config, name = getattr(model, "config", None), getattr(model, "name_or_path", None)
    recorded: str | None = getattr(config, "_commit_hash", None)
    if recorded or config is None or not name or Path(name).expanduser().exists():
        return recorded
    weights = dict(_base_weights(model))
    prefix = (
        f"{getattr(model, 'base_model_prefix', '')}."  # which a file may leave out, such as BART's `model`
    )
    weights |= {key.removeprefix(prefix): weight for key, weight in weights.items()}
    found = next((folder.name for folder in hub_copies(name) if _holds(folder, weights)), None)
    if found:
        config._commit_hash = found
    return found


def _base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the frozen Parameters of the base, under the names that they have without adapters."""
    for name, module in own_modules(model):
        plain = module.base_layer if isinstance(module, LoraLayer) else module
        plain = plain.original if isinstance(plain, SavedModule) else plain
        for part, weight in plain.named_parameters(recurse=False):
            if weight.is_floating_point() and not weight.is_meta and weight.ndim and not weight.requires_grad:
                yield f"{name}.{part}", weight.detach()


def _holds(folder: Path, weights: dict[str, Tensor]) -> bool:
    """Return whether the files of a folder have these values, as far as they have these names."""
    compared = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    weight, held = weights.get(key), tensors.get_slice(key)
                    if weight is None or tuple(held.get_shape()) != tuple(weight.shape):
                        continue
                    if not torch.equal(held[:COMPARED].to(weight.dtype), weight[:COMPARED].cpu()):
                        return False
                    compared += 1
        except (OSError, SafetensorError):
            return False
    return compared > 0
