"""Find the commit of a base that a script has loaded from the Hub by `from_pretrained`.

Transformers does not record it. Without it, an adapter of another revision than `main` would be read on
`main`, whose weights differ.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lora_hf.adapters.backends.bitsandbytes import quantized_dtype
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.model_state import is_news
from lora_hf.adapters.module_names import own_modules
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.errors import few
from lora_hf.files import file_sha256, hub_copies

COMPARED = 8
"""Rows of each weight that are compared with the file's first."""
logger = logging.getLogger(__name__)


def base_revision(model: nn.Module) -> str | None:
    """Return the commit of a model's base: the recorded one, or that of the local copy with its values.

    Args:
        model: a Transformers model, with or without adapters; the commit is recorded in its config.

    Returns:
        None for a model that is not from the Hub, whose values are in no local copy, or, with a warning, in
        several that differ in weights which cannot be compared: quantized or merged ones.
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
    copies = hub_copies(name)
    fitting = [folder for folder in copies if _holds(folder, weights, COMPARED)]
    if len(fitting) > 1:
        fitting = [folder for folder in fitting if _holds(folder, weights, None)]
    if len(fitting) > 1 and len({*map(_content, fitting)}) > 1:
        logger.warning(
            "%s: the local copies %s differ only in weights that are quantized or merged here, so that the "
            "base's revision is not known and not recorded: load it by lora_hf.load_model, or unmerge first",
            *(name, few(folder.name for folder in fitting)),
        )
        return None
    if not fitting:
        if copies and is_news(model, "revision"):  # each checkpoint comes here
            logger.warning(
                "%s: no local copy of it (%s) has all of this model's weights, so that the base's revision "
                "is not recorded, and `main` is loaded with the adapter",
                *(name, few(folder.name for folder in copies)),
            )
        return None
    config._commit_hash = fitting[0].name
    return fitting[0].name


@lru_cache
def _content(folder: Path) -> tuple[str, ...]:
    """Return the hashes of a folder's weights."""
    return tuple(file_sha256(file) for file in _weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that Transformers reads weights from: pickles where there is nothing else."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


@contextmanager
def _tensors_in(file: Path) -> Iterator[dict[str, Any]]:
    """Yield what can be sliced to the tensors of a file, by name; nothing else is read of it."""
    if file.suffix == ".bin":
        mapped = is_zipfile(file)  # the format before PyTorch 1.6 is not
        held = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
        entries = held.items() if isinstance(held, Mapping) else ()  # some hold a version, or a list
        yield {key: one for key, one in entries if isinstance(one, Tensor)}
        return
    with safe_open(file, framework="pt") as tensors:
        yield {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118


def _base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the frozen Parameters of the base, under the names that they have without adapters."""
    for name, module in own_modules(model):
        if isinstance(module, LoraLayer) and module.merged:
            continue
        plain = module.base_layer if isinstance(module, LoraLayer) else module
        plain = plain.original if isinstance(plain, SavedModule) else plain
        for part, weight in plain.named_parameters(recurse=False):
            is_value = weight.is_floating_point() and quantized_dtype(weight) is None
            if is_value and not weight.is_meta and weight.ndim and not weight.requires_grad:
                yield f"{name}.{part}", weight.detach()


def _are_equal(held: Tensor, weight: Tensor) -> bool:
    """Return whether a weight is that of a file, also after a cast to half precision and back."""
    rounded = (held, *(held.to(dtype) for dtype in (torch.bfloat16, torch.float16)))
    return any(torch.equal(one.to(weight.dtype), weight) for one in rounded)


def _holds(folder: Path, weights: dict[str, Tensor], rows: int | None) -> bool:
    """Return whether the files of a folder have these values, as far as they have these names.

    Args:
        folder: of a local copy.
        weights: by name.
        rows: how many of the first rows of each are compared; None compares all.
    """
    compared = 0
    for file in _weight_files(folder):
        try:
            with _tensors_in(file) as tensors:
                for key, held in tensors.items():
                    shape = held.shape if isinstance(held, Tensor) else held.get_shape()
                    weight = weights.get(key)
                    if weight is None or tuple(shape) != tuple(weight.shape):
                        continue
                    if not _are_equal(held[:rows], weight[:rows].cpu()):
                        return False
                    compared += 1
        except (OSError, SafetensorError, RuntimeError, UnpicklingError):
            return False
    return compared > 0
