"""The table of families against the models of Transformers."""

import pytest
import torch
from support.families import EVERY, family_settings, is_encoder_decoder
from transformers import AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as LISTED

from lora_hf.families import FAMILIES, UNKNOWN, family_of


def outline(family):
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(family_settings(family))


def test_every_encoder_decoder_that_transformers_lists_has_a_row():
    assert {name for name in LISTED if is_encoder_decoder(name)} | {"mt5"} == {*FAMILIES}
    assert {family_settings(name).model_type for name in EVERY} == {*FAMILIES}


@pytest.mark.parametrize("name", EVERY)
def test_a_row_names_the_fields_and_modules_of_its_family(name):
    settings, model = family_settings(name), outline(name)
    row = family_of(model)
    for path in row.stacks:
        count = settings
        for part in path.split("."):
            count = getattr(count, part)
        assert count in (1, 2)
    ends = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    assert {*row.targets} <= ends
    if not name.startswith("Seamless"):  # whose speech side is in other classes
        assert {*row.beside, *row.routers} <= ends


def test_a_family_without_a_row_gets_an_empty_one():
    assert family_of(torch.nn.Linear(2, 2)) is family_of("new") is family_of({}) is UNKNOWN
    assert family_of({"model_type": "bart"}) is FAMILIES["bart"]
