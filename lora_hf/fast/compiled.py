"""A model's repeated blocks, compiled by torch: one graph for all that are alike, at every length.

A T5 has four kinds of block (the first of the encoder, whose input needs no gradient, and the others; the
first of the decoder and the others), so that four graphs serve a model of any depth. Compiled as a whole
it is one graph as deep as the model, made anew for lengths that it has not met.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lora_hf.errors import UserError, first_line

MOST = 64
"""Graphs of one function before torch stops compiling it: all layers of Transformers are one to it."""
logger = logging.getLogger(__name__)


def blocks_of(model: Any) -> list[nn.Module]:
    """The model's blocks, by the names that it gives of what must not be split; without any, the model."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names] or [model]


@contextmanager
def compiled(model: Any, backend: str | None = None, mode: str | None = None) -> Iterator[None]:
    """Inside the block each of the model's own blocks is compiled.

    Args:
        model: of any architecture; names, parameters and what wraps it stay.
        backend: of `torch.compile`, in any case; None for inductor.
        mode: of `torch.compile`; None for its default.

    Raises:
        UserError: it cannot be compiled, for want of a compiler for example.
    """
    from torch._dynamo import config, exc  # here: it takes seconds

    blocks = blocks_of(model)
    before = [block._compiled_call_impl for block in blocks]
    what = "the model, which names no blocks" if blocks == [model] else f"{len(blocks)} blocks"
    logger.info("torch_compile: %s, in the plain ways", what)
    for block in blocks:
        block.compile(backend=(backend or "inductor").lower(), mode=mode, dynamic=True)
    try:
        with config.patch(recompile_limit=MOST):
            yield
    except exc.TorchDynamoException as error:
        cause = first_line(getattr(error, "inner_exception", error))
        raise UserError(f"training.torch_compile: {cause}; leave it out, or mend that") from error
    finally:
        for block, own in zip(blocks, before, strict=True):
            block._compiled_call_impl = own


def as_written() -> Any:
    """A context in which compiled blocks run as they are written: graphs of training serve no evaluation."""
    return torch.compiler.set_stance("force_eager")
