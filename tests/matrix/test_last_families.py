"""The last half of the families through every check of the matrix."""

from collections.abc import Callable

import pytest
from support.matrix import cells, hold
from support.matrix_models import ROWS, Case


@pytest.mark.slow
@pytest.mark.parametrize(("row", "check"), cells([*ROWS][len(ROWS) // 2 :]))
def test_a_family_passes_a_check(row: str, check: str, case_of: Callable[[str], Case]) -> None:
    hold(case_of(row), check)
