"""Names of a model's modules as adapters see them: without wrappers, and without what adapters have added."""

import re
from collections.abc import Iterable, Iterator

from torch import nn

from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.adapters.wrappers import unwrapped

WRAPPERS = (LoraLayer, SavedModule)
_INDEX = re.compile(r"(?:^|.*?\.)[^.]*\.(\d+)\.")  # the outermost: T5's blocks, not the layers within one
_LAST_INDEX = re.compile(r"(?:^|.*\.)[^.]*\.(\d+)\.")
_END = re.compile(r"[^.]*(?:\.\d+)*$")  # `wo`, but `experts.0`: an index alone says nothing


def own_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's modules with their names, without those that adapters have added below them.

    A module with several names comes once for each.
    """
    for name, wrapped in unwrapped(module).named_children():
        child = unwrapped(wrapped)
        yield prefix + name, child
        if not isinstance(child, WRAPPERS):
            yield from own_modules(child, f"{prefix}{name}.")


def identity(module: nn.Module) -> int:
    """Return a number that is equal for all places of one layer: T5's `shared` and its `embed_tokens`.

    Those are modules of their own over one Parameter: an adapter on one alone would have no effect. Other
    layers with common weights are replicas, each with adapters of its own.
    """
    is_embedding = isinstance(module, nn.Embedding)
    return id(module.weight) if is_embedding else id(module)


def layers_in_stacks(model: nn.Module) -> dict[str, list[str]]:
    """Return the embeddings that a model calls only at places further inside: T5's `shared` in both stacks.

    Returns:
        The first name -> the others.
    """
    places: dict[int, list[str]] = {}
    for name, module in own_modules(model):
        if isinstance(getattr(module, "original", module), nn.Embedding):
            places.setdefault(identity(module), []).append(name)
    found = {}
    for first, *others in places.values():
        parent = first.rpartition(".")[0]
        if others and all(name.startswith(parent) and name.count(".") > first.count(".") for name in others):
            found[first] = others
    return found


def block_index(name: str, last: bool = False) -> int | None:
    """Return a layer's block, 3 for `encoder.block.3.layer.0.SelfAttention.q`; or the last number, 0."""
    match = (_LAST_INDEX if last else _INDEX).match(name)
    return int(match.group(1)) if match else None


def layer_ends(names: Iterable[str]) -> list[str]:
    return sorted({_END.findall(name)[0] for name in names})


def called(model: nn.Module) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__
