"""Packages that only some metrics need, imported when they are used."""

from importlib import import_module
from types import ModuleType

from lora_hf.errors import UserError


def imported(name: str) -> ModuleType:
    """Return a module of an optional package.

    Raises:
        UserError: the package is missing; the message has the command that installs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise UserError(
            f"task.metrics: this metric needs the package {package} ({error}): pip install 'lora_hf[metrics]'"
        ) from None
