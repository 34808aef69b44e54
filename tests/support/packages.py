"""Optional packages in tests."""

import importlib
from typing import Any

import pytest

from lora_hf.system import reveal


def import_or_skip(module: str) -> Any:
    """Import a module, also of a package that `tests/conftest.py` hides, or skip the test without it.

    `pytest.importorskip` would skip the test of a hidden package wherever no earlier test has revealed it.
    """
    package = module.partition(".")[0]
    if not reveal(package):
        pytest.skip(f"the package {package} is not installed")
    return importlib.import_module(module)
