"""One tiny model per family, shared by all checks of a file."""

from collections.abc import Callable

import pytest
from support.matrix_models import Case


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Return the case of a row, made once."""
    cases: dict[str, Case] = {}

    def of(row: str) -> Case:
        if row not in cases:
            cases[row] = Case(row, tmp_path_factory.mktemp("family"))
        return cases[row]

    return of
