"""`torch.compile` applied to a model's repeated blocks: one graph per kind of block, for every length.

A T5 has four kinds of block (the first of the encoder, whose input needs no gradient, and the others; the
first of the decoder and the others), so four graphs serve a model of any depth. Compiled as a whole, the
model is one graph of its own depth, which is compiled again for new lengths.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lora_hf.errors import UserError, first_line

MOST = 64
"""Graphs per function before torch stops compiling it; all layers of Transformers count as one function."""
logger = logging.getLogger(__name__)


def blocks_of(model: Any) -> list[nn.Module]:
    """Return the modules of the classes in `_no_split_modules`; without any, the model itself."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names] or [model]


@contextmanager
def compiled(
    model: Any, backend: str | None = None, mode: str | None = None, falls_back: bool = False
) -> Iterator[None]:
    """Compile each of the model's blocks inside the `with` block.

    Args:
        model: any architecture; names, parameters and wrappers stay.
        backend: of `torch.compile`, in any case; None for inductor.
        mode: of `torch.compile`; None for its default.
        falls_back: run what cannot be compiled uncompiled; torch logs why.

    Raises:
        UserError: it cannot be compiled, for example without a C++ compiler.
    """
    from torch._dynamo import config, exc  # here: it takes seconds

    blocks = blocks_of(model)
    before = [block._compiled_call_impl for block in blocks]
    what = "the model, which names no blocks" if blocks == [model] else f"{len(blocks)} blocks"
    logger.debug("torch_compile: %s, on the reference path", what)
    for block in blocks:
        block.compile(backend=(backend or "inductor").lower(), mode=mode, dynamic=True)
    try:
        with config.patch(recompile_limit=MOST, suppress_errors=falls_back):
            yield
    except exc.TorchDynamoException as error:
        cause = first_line(getattr(error, "inner_exception", error))
        raise UserError(f"training.torch_compile: {cause}; leave it out, or fix the cause") from error
    finally:
        for block, own in zip(blocks, before, strict=True):
            block._compiled_call_impl = own


def as_written() -> Any:
    """Return a context in which compiled blocks run uncompiled, as evaluation does."""
    return torch.compiler.set_stance("force_eager")
