"""Embeddings and output head beside an adapter: PEFT writes them if the vocabulary was resized, or if asked.

The tensors of the file replace the base's, as with PEFT, and are saved with the adapter again: rows that were
added to a vocabulary are in no other file.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends.quantized import QuantizedLinear, QuantizedWeight
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.model_state import adapter_configs, model_state, update_state
from lora_hf.adapters.module_names import own_modules
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.adapters.peft_format import PREFIX
from lora_hf.adapters.wrappers import get_submodule, unwrapped
from lora_hf.errors import UserError

WHOLE, OF_BASE = ".weight", ".base_layer.weight"
"""Ends of a key: an embedding, and one that also has an adapter."""


def embedding_rows(model: Any) -> int | None:
    """Return how many tokens a model's input embeddings have, also below an adapter or a trained copy.

    Returns:
        The number, or None for a model without embeddings of tokens.
    """
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    parts = embeddings.modules() if isinstance(embeddings, nn.Module) else ()
    return next((part.num_embeddings for part in parts if isinstance(part, nn.Embedding)), None)


def embedding_layers(model: Any) -> dict[str, nn.Module]:
    """Return the input embeddings and the output head of a Transformers model, by their first names."""
    found: dict[str, nn.Module] = {}
    for get in ("get_input_embeddings", "get_output_embeddings"):
        try:
            layer = unwrapped(getattr(model, get)())
        except (AttributeError, NotImplementedError):  # not of Transformers, or without such a layer
            continue
        if isinstance(getattr(layer, "weight", None), Tensor):  # not a vision model's patches
            found |= dict([next((name, m) for name, m in own_modules(model) if m is layer)])
    return found


def embedding_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the embeddings to save with an adapter, by PEFT's keys; none if they are the checkpoint's."""
    if not (model_state(model).has_own_embeddings or _is_resized(model)):
        return {}
    tensors = {}
    for name, layer in embedding_layers(model).items():
        if not isinstance(layer, SavedModule):  # its copy is saved
            end = OF_BASE if isinstance(layer, LoraLayer) else WHOLE
            tensors[f"{PREFIX}{name}{end}"] = layer.weight.detach().float().clone()  # type: ignore[operator]
    return tensors


def _is_resized(model: Any) -> bool:
    """Return whether a vocabulary's size differs from that in the checkpoint's config, if it is on disk."""
    config: Any = getattr(model, "config", None)
    name = getattr(model, "name_or_path", None)
    if config is None or not name:
        return False
    try:
        revision = getattr(config, "_commit_hash", None) or "main"
        loaded = type(config).from_pretrained(name, local_files_only=True, revision=revision)
    except Exception:  # a name that is on no disk, or another library's config
        return False
    return _vocabularies(loaded.to_dict()) != _vocabularies(config.to_dict())


def _vocabularies(settings: Mapping[str, Any]) -> list[int]:
    """Return the sizes of vocabularies in a config and its parts, in order; T5Gemma's are in the parts'."""
    found = []
    for key in sorted(settings, key=str):
        if isinstance(settings[key], dict):
            found += _vocabularies(settings[key])
        elif str(key).endswith("vocab_size"):
            found.append(settings[key])
    return found


def embedding_keys(model: nn.Module, keys: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the keys of a file that hold embeddings, with the model's own Parameters.

    PEFT writes every Parameter of these layers, such as the bias of BERT's head.
    """
    layers = embedding_layers(model)
    own = {id(layer.weight) for layer in layers.values()}
    beside = {
        f"{PREFIX}{place}.{part}": parameter
        for place, layer in own_modules(model)
        if any(layer is one for one in layers.values()) and not isinstance(layer, (LoraLayer, SavedModule))
        for part, parameter in layer.named_parameters(recurse=False)
        if part != "weight"
    }
    found = {}
    for key in keys:
        if key in beside:
            found[key] = beside[key]
            continue
        path = key.removeprefix(PREFIX).removesuffix(WHOLE).removesuffix(".base_layer")
        try:
            layer = get_submodule(model, path)
        except AttributeError:
            continue
        weight = getattr(layer, "weight", None)
        is_whole = (
            key == f"{PREFIX}{path}{WHOLE}" and id(weight) in own and not isinstance(layer, SavedModule)
        )
        if isinstance(weight, nn.Parameter) and (is_whole or key == f"{PREFIX}{path}{OF_BASE}"):
            found[key] = weight
    return found


def check_rows(shape: tuple[int, ...], key: str, weight: Tensor, folder: Path) -> None:
    """Refuse embeddings of another shape than the base's.

    Raises:
        UserError: with the call that resizes the base.
    """
    if shape != tuple(weight.shape):
        raise UserError(
            f"the adapter {folder} holds embeddings of {shape[0]} tokens ({key}), and the base has "
            f"{len(weight)}: resize it first, by model.resize_token_embeddings({shape[0]}), or give the base "
            "that was saved after resizing"
        )


def put_embeddings(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path | None = None) -> None:
    """Put the embeddings of a file in the place of the base's, at all places of each weight.

    Args:
        model: the base.
        tensors: by PEFT's keys; those equal to the base's change nothing.
        folder: the adapter's, which must not change the embeddings of other adapters; None for one that the
            model already has.

    Raises:
        UserError: one weight of the base would become two, or other adapters use it.
    """
    quantized = {id(m.weight): m for m in model.modules() if isinstance(m, QuantizedLinear)}
    requantized: dict[int, QuantizedWeight] = {}
    new: dict[int, nn.Parameter] = {}
    sources: dict[int, str] = {}
    for key, weight in embedding_keys(model, sorted(tensors)).items():
        if layer := quantized.get(id(weight)):
            stored = layer.quantized.requantize(tensors[key].to(weight.device))
            if not all(map(torch.equal, stored.tensors(), layer.quantized.tensors())):
                requantized[id(weight)] = stored
            continue
        tensor = tensors[key].to(weight.device, weight.dtype)
        if id(weight) in new and not torch.equal(new[id(weight)], tensor):
            raise UserError(
                f"{key} differs from {sources[id(weight)]} in {folder}, and the base has one weight for "
                "both: load a base whose output head has its own weight"
            )
        new[id(weight)], sources[id(weight)] = nn.Parameter(tensor, weight.requires_grad), key
    own = {id(p): p for p in model.parameters()}
    changed = {key: p for key, p in new.items() if not torch.equal(own[key], p)}
    if not (changed or requantized):
        return
    if folder is not None and (others := sorted(adapter_configs(model))):
        raise UserError(
            f"the adapter {folder} has embeddings of its own, which would change those of {others}: load "
            "it on a base of its own"
        )
    for number, stored in requantized.items():
        quantized[number].put(stored)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in changed:
                module._parameters[name] = changed[id(parameter)]
    update_state(model, has_own_embeddings=True)
