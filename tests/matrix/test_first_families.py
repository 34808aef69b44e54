"""The first half of the families through every check of the matrix."""

from collections.abc import Callable

import pytest
from support.matrix import hold
from support.matrix_checks import CHECKS
from support.matrix_models import FAST, QUICK, ROWS, Case

HALF = [*ROWS][: len(ROWS) // 2]
CELLS = [(row, check) for row in HALF for check in CHECKS if row not in FAST or check not in QUICK]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "check"), CELLS)
def test_a_family_passes_a_check(row: str, check: str, case_of: Callable[[str], Case]) -> None:
    hold(case_of(row), check)
