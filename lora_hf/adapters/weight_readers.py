"""Find modules that read the weight of a layer in their own forward, and never call the layer.

An adapter on such a layer has no effect, without an error: `nn.TransformerEncoderLayer` passes the weights of
`linear1` and `linear2` to one fused operation in evaluation mode, and `nn.MultiheadAttention` always does so
with `out_proj`. What a forward reads is in its source. One that also calls the layer, in another branch, is
not refused: a training sees which branch is taken (`training/unused_layers.py`).
"""

import inspect
import re
from functools import cache
from typing import Any

import torch
from torch import nn

from lora_hf.adapters.wrappers import get_submodule
from lora_hf.errors import UserError

NOT_A_CHECK = r"(?<!isinstance\()"
WEIGHT = r"""(?:weight\b|_parameters\[["']weight["']\])"""
ONLY_ASKS = r"(?!\.(?:dtype|device|shape|size|ndim|requires_grad|is_\w+|numel|element_size)\b)"
"""Code around a weight that is not computed with, as in T5's `self.wo.weight.dtype`."""

_CASTS = re.compile(r"\.to\(self\.(\w+)\.weight\.dtype\)")
FAST_PATH = ". With torch.backends.mha.set_fastpath_enabled(False), in each process that uses it, it would"


def casts_to_weight(module: nn.Module) -> list[str]:
    """Return the children to whose weight's dtype a module casts activations, as T5's feed-forward for `wo`.

    Packed 4-bit weights are uint8, and activations rounded to uint8 are useless; such modules leave int8 out.
    """
    kind: Any = type(module)
    return sorted({child for source in _computations(kind) for child in _CASTS.findall(source)})


def refuse_weight_reader(model: nn.Module, name: str) -> None:
    """Refuse a target whose weight the forward of another module reads.

    Args:
        model: contains the layer.
        name: dotted name of the layer.

    Raises:
        UserError: a module does; the message names it.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        if parts[end].isdigit():  # an item of a list: no source says `self.block.0`
            return
        owner = get_submodule(model, ".".join(parts[:end]))
        is_fast = isinstance(owner, nn.TransformerEncoderLayer)  # calls it in training mode only
        if is_fast and not torch.backends.mha.get_fastpath_enabled():
            continue
        kind: Any = type(owner)
        reads, uses = _finds(kind, ".".join(parts[end:]))
        if reads and (is_fast or not uses):
            remedy = FAST_PATH if is_fast else ""
            raise UserError(
                f"target_modules: an adapter on {name} has no effect, because the forward of {kind.__name__} "
                f"reads the layer's weight itself; leave it out, or name it in exclude_modules{remedy}",
                "target_modules",
            )


@cache
def _finds(kind: Any, child: str) -> tuple[bool, bool]:
    """Return whether a module type's forward reads the weight of a child, and whether it uses the child.

    To use it is to call it or to pass it to another function.
    """
    child = re.escape(child)
    reads = re.compile(rf"{NOT_A_CHECK}\bself\.{child}\.{WEIGHT}{ONLY_ASKS}")
    uses = re.compile(rf"\bself\.{child}\b(?!\.)")
    sources = _computations(kind)
    return any(map(reads.search, sources)), any(map(uses.search, sources))


@cache
def _computations(kind: Any) -> tuple[str, ...]:
    """Return the sources of a module type's forward, and of the methods that it calls."""
    sources, names, seen = [], ["forward"], set(vars(nn.Module))
    while names:
        try:
            source = inspect.getsource(inspect.unwrap(getattr(kind, names.pop(), None)))  # type: ignore[arg-type]
        except (OSError, TypeError):  # not written in Python, or in no file
            continue
        sources.append(source)
        called = set(re.findall(r"\bself\.(\w+)\(", source)) - seen
        seen |= called
        names += sorted(called)
    return tuple(sources)
