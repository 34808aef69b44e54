"""Lengths are compared with the positions that a sequence really takes, before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import EVERY, family_settings, make_family
from support.letters import letters
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from lora_hf.baselines import add_prompt
from lora_hf.config import DataConfig, GenerationConfig, ModelConfig, RunConfig
from lora_hf.doctor.configs import tokens
from lora_hf.errors import UserError
from lora_hf.models.load import check_run_lengths, load_model
from lora_hf.models.positions import check_positions, positions_of

PART = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PART |= {"intermediate_size": 48, "max_position_embeddings": 64}


def runs(model: Any, source: int, target: int = 2) -> bool:
    """Return whether a model takes a source and a target of so many tokens."""
    ids = torch.full((1, source), 5)
    try:
        with torch.no_grad():
            model.eval()(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                decoder_input_ids=torch.full((1, target), 5),
            )
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", EVERY)
def test_the_longest_texts_that_are_accepted_run(family: str) -> None:
    model = make_family(family)
    encoder, decoder = positions_of(model.config)
    assert runs(model, encoder or 80, decoder or 80)


def test_a_table_of_positions_is_saved_in_the_size_of_its_config(tmp_path: Path) -> None:
    """FSMT's grow with the texts, and Transformers would read neither a model nor a checkpoint again."""
    make_family("FSMT").save_pretrained(tmp_path / "base")
    letters().save_pretrained(tmp_path / "base")
    model = load_model(ModelConfig(model_name_or_path=str(tmp_path / "base")))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert runs(model, 80, 80)
    model.save_pretrained(tmp_path / "written")
    assert torch.equal(
        *(
            one.model.encoder.embed_positions.weight[:60]
            for one in (model, AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "written"))
        )
    )
    model.load_state_dict(state)
    assert runs(model, 90, 90)


def source_problem(settings: Any, length: int, virtual_tokens: int = 0) -> str:
    data = DataConfig(max_source_length=length, max_target_length=2)
    try:
        check_positions(settings, data, GenerationConfig(), "m", virtual_tokens)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("family", "fields", "virtual_tokens", "most", "why"),
    [
        ("Bart", {}, 8, 56, "8 of its 64 positions are for virtual tokens"),
        ("LED", {"max_encoder_position_embeddings": 60}, 0, 48, "pads sources to a multiple of 16"),
        ("LED", {"max_encoder_position_embeddings": 60}, 8, 40, "pads sources to a multiple of 16"),
        ("LED", {"attention_window": [4, 8]}, 0, 64, "no embeddings"),
    ],
)
def test_what_lengthens_a_source_takes_positions_too(
    family: str, fields: dict[str, Any], virtual_tokens: int, most: int, why: str
) -> None:
    model = make_family(family, **fields)
    settings = family_settings(family, **fields)
    if virtual_tokens:
        add_prompt(model, virtual_tokens, "random")
    assert runs(model, most) and not runs(model, most + 1)
    assert not source_problem(settings, most, virtual_tokens)
    problem = source_problem(settings, most + 1, virtual_tokens)
    assert f"data.max_source_length={most + 1} (at most {most})" in problem and why in problem


@pytest.mark.parametrize("part", [RobertaConfig, XLMRobertaConfig, BertConfig])
def test_a_part_whose_positions_begin_after_its_padding_has_fewer_of_them(part: Any) -> None:
    own = part(**PART, pad_token_id=3)
    other = part(**PART, is_decoder=True, add_cross_attention=True)
    settings = EncoderDecoderConfig.from_encoder_decoder_configs(own, other)
    model = EncoderDecoderModel(settings)
    encoder, decoder = positions_of(settings)
    assert (encoder, decoder) == ((64, 64) if part is BertConfig else (60, 62))
    assert runs(model, 60, decoder) and runs(model, encoder)
    assert not runs(model, encoder + 1) and not runs(model, 2, decoder + 1)


def test_a_window_wider_than_all_positions_leaves_none() -> None:
    settings = family_settings("LED", max_encoder_position_embeddings=8)
    assert "attention_window=16" in source_problem(settings, 4)
    assert not runs(AutoModelForSeq2SeqLM.from_config(settings), 4)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"method": "prompt_tuning"}, "data.max_source_length=60 (at most 44)"),
        (
            {"variants": {"v": {"method": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": 9}}}},
            "data.max_source_length=60 (at most 55)",
        ),
    ],
)
def test_the_doctor_says_what_the_run_says(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    family_settings("Bart").save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    run = RunConfig(
        model=ModelConfig(model_name_or_path=str(tmp_path)),
        data=DataConfig(max_source_length=60, max_target_length=60),
        **fields,
    )
    findings = list(tokens(Path("x.yaml"), run, letters()))
    assert [one.state for one in findings] == ["fault"] and says in findings[0].title
    if not run.variants:
        with pytest.raises(UserError) as error:
            check_run_lengths(run)
        assert str(error.value) == findings[0].title
