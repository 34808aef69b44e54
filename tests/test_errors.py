"""A mistake names its field as the user wrote it: in Python, and in a section of the YAML."""

import pickle

import pytest

from lora_hf.errors import UserError, counted


@pytest.mark.parametrize(
    ("field", "message", "in_yaml"),
    [
        ("r", "r=0 must be at least 1", "lora.r=0 must be at least 1"),
        ("r", "layer enc.r: r=99 is above r_max", "layer enc.r: lora.r=99 is above r_max"),
        (
            "rank_pattern['q']",
            "rank_pattern['q']=0 must be at least 1",
            "lora.rank_pattern['q']=0 must be at least 1",
        ),
        (None, "no adapter at runs/x", "no adapter at runs/x"),
    ],
)
def test_a_section_is_put_before_the_field(field: str | None, message: str, in_yaml: str) -> None:
    error = UserError(message, field)
    assert str(error) == message
    assert str(error.in_section("lora")) == in_yaml
    assert error.in_section("lora").field == (field and f"lora.{field}")


def test_an_error_survives_pickling_with_its_field() -> None:
    again = pickle.loads(pickle.dumps(UserError("r=0 must be at least 1", "r")))
    assert (str(again), again.field) == ("r=0 must be at least 1", "r")


def test_a_number_has_its_noun_in_the_right_form() -> None:
    assert [counted(n, "row") for n in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]
    assert [counted(n, "summary", "summaries") for n in (1, 2)] == ["1 summary", "2 summaries"]
