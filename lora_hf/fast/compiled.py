"""A model's repeated blocks, compiled by torch: one graph for all that are alike, at every length.

A T5 has four kinds of block (the first of the encoder, whose input needs no gradient, and the others; the
first of the decoder and the others), so that four graphs serve a model of any depth. Compiled as a whole
it is one graph as deep as the model, made anew for lengths that it has not met.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def blocks_of(model: Any) -> list[nn.Module]:
    """The model's blocks, by the names that it gives of what must not be split; without any, the model."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names] or [model]


@contextmanager
def compiled(model: Any, backend: str | None = None, mode: str | None = None) -> Iterator[int]:
    """Inside the block each of the model's own blocks is compiled; yields how many these are.

    Args:
        model: of any architecture; names, parameters and what wraps it stay.
        backend: of `torch.compile`; None for inductor.
        mode: of `torch.compile`; None for its default.
    """
    blocks = blocks_of(model)
    for block in blocks:
        block.compile(backend=backend or "inductor", mode=mode, dynamic=True)
    try:
        yield len(blocks)
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def as_written() -> Any:
    """A context in which compiled blocks run as they are written: graphs of training serve no evaluation."""
    return torch.compiler.set_stance("force_eager")
