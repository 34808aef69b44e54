"""Undo a change of a model's structure that fails half-way, or that was only a trial."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def rolled_back_on_error(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes, every config and every `requires_grad` if the block raises.

    Weights are not copied: they must be replaced, never written in place, as backends do.
    """
    restore = _snapshot(model)
    try:
        yield
    except BaseException:
        restore()
        raise


@contextmanager
def rolled_back(model: nn.Module) -> Iterator[None]:
    """Restore the same after the block in any case."""
    restore = _snapshot(model)
    try:
        yield
    finally:
        restore()


def _snapshot(model: nn.Module) -> Callable[[], None]:
    """Return a function that restores the present structure of the model."""
    parameters = [(p, p.requires_grad) for p in model.parameters()]
    modules = list(model.modules())
    owners: list[Any] = [
        *modules,
        *{id(m.config): m.config for m in modules if hasattr(m, "config")}.values(),
    ]
    before = [  # modules, parameters and buffers are in dicts
        (owner, {k: v.copy() if isinstance(v, dict | list) else v for k, v in owner.__dict__.items()})
        for owner in owners
    ]

    def restore() -> None:
        for owner, attributes in before:
            owner.__dict__.clear()
            owner.__dict__.update(attributes)
        for parameter, required in parameters:
            parameter.requires_grad_(required)

    return restore
