"""Which rows of a parametrized test `make test` runs; `make test-full` runs the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(
    fast: Iterable[Any], values: Iterable[Any], versions: bool | Iterable[Any] = False
) -> list[Any]:
    """Mark all values slow but those in `fast`, of which one stands for each thing that can break by itself.

    Args:
        fast: values that `make test` runs.
        values: all rows; the parts of a tuple become several arguments.
        versions: those of the others that `make test-lowest` runs too; True for all.
    """
    rows, kept = list(values), list(fast)
    lowest = (rows if versions else []) if isinstance(versions, bool) else list(versions)
    assert all(value in rows for value in (*kept, *lowest)), "a row that is named is not a row of the test"
    marks = [pytest.mark.slow], [pytest.mark.slow, pytest.mark.versions]
    return [_row(row, [] if row in kept else marks[row in lowest]) for row in rows]


def _row(row: Any, marks: list[Any]) -> Any:
    parts = row if isinstance(row, tuple) else (row,)
    return pytest.param(
        *parts, id="-".join(getattr(part, "__name__", str(part)) for part in parts), marks=marks
    )
