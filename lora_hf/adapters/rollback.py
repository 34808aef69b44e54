"""A change of a model's structure that fails half-way leaves no trace: what was there is put back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Put every module's attributes, every config and every `requires_grad` back if the block raises.

    Weights are not copied: they must be replaced, never written in place, as backends do.
    """
    put_back = _remember(model)
    try:
        yield
    except BaseException:
        put_back()
        raise


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Put the same back in any case: what the block does is tried, not done."""
    put_back = _remember(model)
    try:
        yield
    finally:
        put_back()


def _remember(model: nn.Module) -> Callable[[], None]:
    """What puts the model back as it is now."""
    parameters = [(p, p.requires_grad) for p in model.parameters()]
    modules = list(model.modules())
    owners: list[Any] = [
        *modules,
        *{id(m.config): m.config for m in modules if hasattr(m, "config")}.values(),
    ]
    before = [(owner, _copy(owner.__dict__)) for owner in owners]

    def put_back() -> None:
        for owner, attributes in before:
            owner.__dict__.clear()
            owner.__dict__.update(attributes)
        for parameter, required in parameters:
            parameter.requires_grad_(required)

    return put_back


def _copy(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes, dicts and lists as copies: modules, parameters and buffers are in dicts."""
    return {
        key: value.copy() if isinstance(value, dict | list) else value for key, value in attributes.items()
    }
