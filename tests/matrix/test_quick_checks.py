"""Three families through the quick checks of the matrix, and the page that is made from it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.matrix import hold, not_tried, page
from support.matrix_models import FAST, QUICK, Case

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("row", FAST)
@pytest.mark.parametrize("check", QUICK)
def test_a_family_passes_a_quick_check(row: str, check: str, case_of: Callable[[str], Case]) -> None:
    hold(case_of(row), check)


def test_every_encoder_decoder_of_transformers_is_tried_and_the_page_shows_the_present_matrix() -> None:
    assert not_tried() == []
    assert (DOCS / "models.md").read_text(encoding="utf-8") == page(), (
        "docs/models.md is out of date: run `python scripts/tools/models_page.py`"
    )
