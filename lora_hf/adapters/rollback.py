"""Roll back a change of a model's structure that fails half-way, or that was only a trial."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

CONTAINERS = (dict, list, set)


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
    """Return a function that restores the present structure of the model.

    Dicts and lists are restored in place: handles of hooks refer to a module's own dict, and others may hold
    the lists of a config.
    """
    parameters = [(p, p.requires_grad) for p in model.parameters()]
    modules = list(model.modules())
    owners: list[Any] = [
        *modules,
        *{id(m.config): m.config for m in modules if hasattr(m, "config")}.values(),
    ]
    contents: dict[int, tuple[Any, Any]] = {}  # modules, parameters and buffers are in dicts
    waiting: list[Any] = [owner.__dict__ for owner in owners]
    while waiting:
        container = waiting.pop()
        if id(container) not in contents:
            contents[id(container)] = container, container.copy()
            values = container.values() if isinstance(container, dict) else container
            waiting += [value for value in values if isinstance(value, CONTAINERS)]

    def restore() -> None:
        for container, held in contents.values():
            container.clear()
            container.extend(held) if isinstance(container, list) else container.update(held)
        for parameter, required in parameters:
            parameter.requires_grad_(required)

    return restore
