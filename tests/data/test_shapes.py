"""Each shape of data is read, or refused in one line that names the remedy; docs/data.md lists them all."""

from pathlib import Path

import pytest
from support.shapes import FILES, ROWS, SHAPES, outcome_of, table

from lora_hf.data.readers import read_rows


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_shape_is_read_or_refused_in_one_line_with_the_remedy(shape, tmp_path):
    path = shape.write(tmp_path)
    outcome = outcome_of(path, **shape.fields)
    if shape.outcome == "read":
        assert outcome.startswith("read: "), outcome
    else:
        assert not outcome.startswith("read: ") and shape.outcome in outcome
        assert str(tmp_path) in outcome and "\n" not in outcome
        assert len(outcome.replace(str(tmp_path), "")) <= 500
        mended, fields = shape.remedy(path)
        assert outcome_of(mended, **fields).startswith("read: "), "the remedy does not help"


EQUAL = [
    shape
    for shape in FILES
    if shape.outcome == "read" and not shape.fields and shape.name[:3] not in ("nan", "nul", "ind")
]


@pytest.mark.parametrize("shape", EQUAL, ids=lambda shape: shape.name)
def test_every_readable_file_gives_the_rows_to_the_letter(shape, tmp_path):
    assert read_rows(shape.write(tmp_path)) == ROWS


def test_the_page_on_data_lists_every_shape_with_its_outcome():
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in table() if line not in page] == []
