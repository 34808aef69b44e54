"""The stacks of blocks in a model, found by structure, and from which spans they were rebuilt."""

from typing import NamedTuple

from torch import nn

from lora_hf.adapters.config import Spans


class Stack(NamedTuple):
    """The blocks that a hidden state passes one after the other; `side` is `encoder` or `decoder`."""

    path: str
    side: str
    blocks: nn.ModuleList


def replication(model: nn.Module) -> dict[str, Spans]:
    """The spans each stack was rebuilt from; empty for a model as it was loaded, or unshared."""
    return getattr(model, "lora_hf_replication", {})


def name_before_replication(model: nn.Module, name: str) -> str:
    """What the checkpoint calls a layer: a copy of a block is its source there."""
    stacks = find_stacks(model)
    for stack, spans in replication(model).items():
        head = stacks[stack].path + "."
        if name.startswith(head):
            place, _, rest = name.removeprefix(head).partition(".")
            order = [i for start, end in spans for i in range(start, end)]
            return f"{head}{order[int(place)]}.{rest}"
    return name


def find_stacks(model: nn.Module) -> dict[str, Stack]:
    """The outermost lists of equal-typed blocks, by their side; by their paths where a side has several."""
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and path]
    outer = [(path, m) for path, m in lists if not any(path.startswith(other + ".") for other, _ in lists)]
    found = [Stack(path, _side(path, m), m) for path, m in outer if len({type(block) for block in m}) == 1]
    sides = [stack.side for stack in found]
    return {stack.side if sides.count(stack.side) == 1 else stack.path: stack for stack in found}


def _side(path: str, blocks: nn.ModuleList) -> str:
    """By name; a stack without one decodes if its attention is causal, or where unsaid, if it has a cache."""
    named = next((part for part in path.split(".") if part in ("encoder", "decoder")), None)
    causal = any(getattr(m, "is_causal", hasattr(m, "layer_idx")) for m in blocks.modules())
    return named or ("decoder" if causal else "encoder")
