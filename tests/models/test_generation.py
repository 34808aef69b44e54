"""A model keeps those generation settings of its checkpoint that its family needs, from either file."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import make_bart, make_t5
from transformers import GenerationConfig as TransformersConfig

from lora_hf.adapters import LoraConfig, inject_adapters
from lora_hf.config import GenerationConfig, ModelConfig, RunConfig
from lora_hf.config.load import load_config
from lora_hf.data.collate import check_tokens
from lora_hf.data.prepare import load_data
from lora_hf.errors import UserError
from lora_hf.models.generation import NEEDED, generation_config, keep_needed
from lora_hf.models.load import load_model, load_tokenizer

NEWS: dict[str, Any] = {"max_length": 142, "min_length": 56, "no_repeat_ngram_size": 3, "num_beams": 4}
NEWS |= {"early_stopping": True, "length_penalty": 2.0, "forced_eos_token_id": 2, "do_sample": True}
FAMILY = {"decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def written_to(folder: Path, name: str, fields: dict[str, Any]) -> ModelConfig:
    """Save a BART whose file `name` has these fields; without one of its own, config.json is what counts."""
    model: Any = make_bart()
    model.save_pretrained(folder)
    if name == "config.json":
        (folder / "generation_config.json").unlink()
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return ModelConfig(model_name_or_path=str(folder))


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_checkpoint_s_own_settings_are_not_used_and_reported(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lora_hf")
    model = load_model(written_to(tmp_path, name, FAMILY | NEWS), torch.device("cpu"))
    kept = model.generation_config.to_diff_dict()
    assert {key: value for key, value in kept.items() if key != "transformers_version"} == FAMILY
    (line,) = [one.getMessage() for one in caplog.records if "not used" in one.getMessage()]
    assert str(tmp_path) in line and all(f"{key}={value!r}" for key, value in NEWS.items())
    tokens = model.generate(input_ids=torch.tensor([[5, 6, 2]]), max_new_tokens=4)
    assert tokens.shape[1] <= 5  # min_length would be 56


@pytest.mark.parametrize(
    "needed",
    [{"forced_bos_token_id": 40}, {"bad_words_ids": [[1]]}, {"eos_token_id": [2, 9]}],
    ids=["mbart", "marian", "several ends"],
)
def test_what_a_family_needs_is_kept(needed: dict[str, Any], tmp_path: Path) -> None:
    model = load_model(written_to(tmp_path, "generation_config.json", FAMILY | needed), torch.device("cpu"))
    own = model.generation_config.to_diff_dict()
    assert {key: own[key] for key in needed} == needed and set(needed) <= set(NEEDED)
    tokens = model.generate(input_ids=torch.tensor([[5, 6, 2]]), max_new_tokens=4)[0].tolist()
    assert needed.get("forced_bos_token_id", tokens[1]) == tokens[1]


def test_a_first_token_that_the_family_does_not_know_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lora_hf")
    model = make_t5()
    model.generation_config.forced_bos_token_id = 40
    keep_needed(model, "a/b")
    assert model.generation_config.forced_bos_token_id == 40
    assert "a/b brings forced_bos_token_id=40: every text that is written begins with this" in caplog.text


def test_words_that_a_checkpoint_forbids_are_not_its_family_s_need(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lora_hf")
    given = FAMILY | {"bad_words_ids": [[14]]}
    model = load_model(written_to(tmp_path, "generation_config.json", given), torch.device("cpu"))
    assert model.generation_config.bad_words_ids is None
    assert "generation settings that are not used: bad_words_ids=[[14]]" in caplog.text


def test_a_model_s_needs_are_joined_with_the_settings_of_a_run() -> None:
    model: Any = make_t5()
    model.generation_config = TransformersConfig(decoder_start_token_id=0, forced_bos_token_id=7, num_beams=4)
    assert keep_needed(model, "").num_beams == 4
    settings = GenerationConfig(num_beams=2, length_penalty=0.5, min_new_tokens=3, forced_bos_token_id=0)
    found = generation_config(model, settings, 9).to_diff_dict()
    expected = {"num_beams": 2, "length_penalty": 0.5, "min_new_tokens": 3, "max_new_tokens": 9}
    assert expected | {"forced_bos_token_id": 0, "decoder_start_token_id": 0} == {
        key: found[key] for key in (*expected, "forced_bos_token_id", "decoder_start_token_id")
    }


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"num_beams": 1, "do_sample": False}),
        (
            {"num_beams": 2},
            {"num_beams": 2, "do_sample": False, "length_penalty": 1.0, "early_stopping": False},
        ),
        ({"forced_eos_token_id": 0}, {"num_beams": 1, "do_sample": False, "forced_eos_token_id": 0}),
        ({"repetition_penalty": 1.2}, {"num_beams": 1, "do_sample": False, "repetition_penalty": 1.2}),
    ],
)
def test_options_leave_out_what_has_no_effect(fields: dict[str, Any], options: dict[str, Any]) -> None:
    assert GenerationConfig(**fields).options() == options


def test_a_token_that_the_model_does_not_have_is_refused() -> None:
    says = "generation.forced_bos_token_id=96 must be below 96, the size of the model's vocabulary"
    with pytest.raises(UserError, match=says):
        generation_config(make_t5(), GenerationConfig(forced_bos_token_id=96))


def test_a_smallest_length_above_the_largest_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"generation.min_new_tokens=9 is more than generation.max_new_tokens=8"
    ):
        load_config({"generation": {"min_new_tokens": 9, "max_new_tokens": 8}})
    data = {"max_train_samples": 4, "max_eval_samples": 2, "max_test_samples": 2}
    config = RunConfig.model_validate({"data": data, "generation": {"min_new_tokens": 500}})
    with pytest.raises(UserError, match="generation.min_new_tokens=500 is more than the .* tokens"):
        load_data(config, load_tokenizer(config.model))


@pytest.mark.parametrize("place", ["target_modules", "modules_to_save"])
def test_embeddings_with_an_adapter_or_a_copy_still_say_how_many_tokens_there_are(place: str) -> None:
    model = load_model(ModelConfig())
    inject_adapters(model, LoraConfig(**({"target_modules": ["q"]} | {place: ["shared"]})))
    generation_config(model, GenerationConfig(forced_bos_token_id=1599))
    with pytest.raises(UserError, match=r"forced_bos_token_id=1600 must be below 1600"):
        generation_config(model, GenerationConfig(forced_bos_token_id=1600))
    with pytest.raises(UserError, match=r"hold the token 1600, and the model has 1,600"):
        check_tokens(model, {"input_ids": torch.tensor([[1600]])})
