"""Padding, end and decoder start are found wherever a checkpoint names them, or are one error."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import EVERY, SIX, family_settings, make_family
from support.letters import letters
from support.multilingual import mbart
from support.selection import slow_except
from transformers import AutoTokenizer, ByT5Tokenizer
from transformers.trainer_utils import align_special_tokens

from lora_hf.config import DataConfig, GenerationConfig, ModelConfig
from lora_hf.data.examples import Example
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.errors import UserError
from lora_hf.models.load import check_lengths, load_model, load_tokenizer

CPU = torch.device("cpu")


def folder_of(
    folder: Path, family: str, tokenizer: Any, drop: tuple[str, ...] = (), **generation: int
) -> ModelConfig:
    """Write a tokenizer, a config.json without some fields, and a generation_config.json."""
    tokenizer.save_pretrained(folder)
    fields = family_settings(family).to_dict()
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if k not in drop}))
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig(model_name_or_path=str(folder))


def test_bert_s_end_is_its_separator_and_prophetnet_s_the_one_of_its_config(tmp_path: Path) -> None:
    bare = letters("<s> $A </s>", eos_token=None, bos_token=None, sep_token="</s>", cls_token="<s>")
    tokenizer = load_tokenizer(folder_of(tmp_path, "BertBert", bare, ("eos_token_id",)))
    assert tokenizer.eos_token == "</s>"
    labels = TokenizedDialogues([Example("a", "Hi.", ("Ho.",))], tokenizer, DataConfig(), "train")[0][
        "labels"
    ]
    assert labels == bare(text_target="Ho.").input_ids
    nameless = letters("$A </s>", eos_token=None, pad_token=None)
    config = folder_of(tmp_path, "ProphetNet", nameless, ("eos_token_id", "pad_token_id"))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1], "pad_token_id": 0}))
    found = load_tokenizer(config)
    assert (found.eos_token, found.pad_token) == ("</s>", "<pad>")


@pytest.mark.parametrize(
    ("names", "drop", "message"),
    [
        ({"pad_token": None}, (), 'no padding token ("pad_token" of tokenizer_config.json)'),
        ({"eos_token": None}, (), 'no end token ("eos_token" of tokenizer_config.json)'),
        ({"bos_token": None}, ("decoder_start_token_id",), "no token that the decoder starts from"),
    ],
)
def test_a_token_that_nothing_names_is_one_error(
    tmp_path: Path, names: dict[str, None], drop: tuple[str, ...], message: str
) -> None:
    drop = (*drop, "pad_token_id", "eos_token_id", "bos_token_id")
    config = folder_of(tmp_path, "BertBert", letters("<s> $A </s>", **names), drop)
    with pytest.raises(UserError) as error:
        load_tokenizer(config)
    assert str(error.value).startswith(f"{config.as_written}: its tokenizer, config.json and ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("family", "generation", "start"),
    [("T5", {}, 0), ("T5", {"decoder_start_token_id": 4}, 4), ("T5Gemma", {}, 3), ("PLBart", {}, 1)],
)
def test_a_model_gets_the_decoder_start_that_its_family_has_or_its_generation_settings_name(
    tmp_path: Path, family: str, generation: dict[str, int], start: int
) -> None:
    make_family(family).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = folder_of(tmp_path, family, letters(), ("decoder_start_token_id", "eos_token_id"), **generation)
    model = load_model(config, CPU)
    for settings in (model.config, model.generation_config):
        assert settings.decoder_start_token_id == start and settings.eos_token_id is not None
    loss = model(input_ids=torch.tensor([[5, 6, 1]]), labels=torch.tensor([[7, 1]])).loss
    assert loss.isfinite()
    assert model.generate(torch.tensor([[5, 6, 1]]), max_new_tokens=2)[0, 0] == start


@pytest.mark.parametrize(("given", "ends"), [(7, [1, 7]), ([7, 8], [1, 7, 8]), ([8, 1], [8, 1]), (1, 1)])
def test_a_model_stops_at_the_end_of_its_tokenizer_s_labels_in_every_command(
    tmp_path: Path, given: Any, ends: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As Transformers' Trainer arranges it: the run is scored so, and its adapter is used so."""
    make_family("T5").save_pretrained(tmp_path)
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0}
    config = folder_of(tmp_path, "T5", letters(), **ids, eos_token_id=given)
    model = load_model(config, CPU)
    assert model.generation_config.eos_token_id == ends
    assert ("its tokenizer ends texts with the token 1" in caplog.text) == (given != ends)
    align_special_tokens(model, load_tokenizer(config))
    aligned = model.generation_config.eos_token_id
    assert aligned in (ends, [ends])  # one alone is a list in some versions


def test_texts_that_have_ended_are_filled_with_the_padding_of_the_tokenizer(tmp_path: Path) -> None:
    """As Transformers' Trainer arranges it; the checkpoint's would be read as a token of the text."""
    make_family("T5").save_pretrained(tmp_path)
    ids = {"decoder_start_token_id": 0, "eos_token_id": 1}
    config = folder_of(tmp_path, "T5", letters(), **ids, pad_token_id=7)
    tokenizer, model = load_tokenizer(config), load_model(config, CPU)
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != 7
    tokenizer.add_tokens([f"<{number}>" for number in range(len(model.shared.weight))])
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    tokenizer.save_pretrained(tmp_path)
    assert load_model(config, CPU).generation_config.pad_token_id == 7
    with pytest.raises(UserError, match="tokens, but the model has embeddings for"):
        load_tokenizer(config)


def test_a_checkpoint_that_writes_one_language_says_that_of_the_labels(tmp_path: Path) -> None:
    tokenizer = mbart()
    config = folder_of(tmp_path, "MBart", tokenizer)
    assert load_tokenizer(config).tgt_lang is None
    romanian = tokenizer.convert_tokens_to_ids("ro_RO")
    folder_of(tmp_path, "MBart", tokenizer, decoder_start_token_id=romanian)
    assert load_tokenizer(config).tgt_lang == "ro_RO"


@pytest.mark.parametrize(
    "family", slow_except((*SIX, "ProphetNet", "FSMT", "BertGpt2"), EVERY, versions=True)
)
def test_lengths_beyond_the_model_s_positions_are_one_error_before_loading(
    tmp_path: Path, family: str
) -> None:
    """A family fits if every position that it may be given has an embedding, or is computed."""
    config = folder_of(tmp_path, family, letters())
    longest = 62 if family == "ProphetNet" else 64  # its decoder looks up the next position as well
    check_lengths(config, DataConfig(max_source_length=64, max_target_length=longest), GenerationConfig())
    model = make_family(family)
    ids = torch.full((1, 70), 5)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=ids)
    except (IndexError, RuntimeError):  # BERT's buffer of token types is as long
        with pytest.raises(UserError) as error:
            check_lengths(config, DataConfig(), GenerationConfig(max_new_tokens=70))
        assert str(error.value).startswith(
            f"data.max_source_length=512 (at most 64) and data.max_target_length=128 (at most {longest}) and "
            f"generation.max_new_tokens=70 (at most {longest}): {config.as_written} has no embeddings"
        )
    else:
        check_lengths(config, DataConfig(), GenerationConfig(max_new_tokens=70))


def test_byt5_s_tokenizer_is_a_folder_without_a_vocabulary(tmp_path: Path) -> None:
    config = folder_of(tmp_path, "T5", ByT5Tokenizer(), ("vocab_size",))
    assert load_tokenizer(config)("é").input_ids == [198, 172, 1]
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="there is no tokenizer beside the model"):
        load_tokenizer(config)


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (
            ImportError("\nM2M100Tokenizer requires the SentencePiece library but it was not\n"),
            "sentencepiece",
        ),
        (ValueError("`tiktoken` is required to read a `tiktoken` file."), "sentencepiece"),
        (ImportError("You need to install sacremoses to use XLMTokenizer."), "sacremoses"),
    ],
)
def test_a_missing_package_of_a_tokenizer_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, package: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    config = folder_of(tmp_path, "T5", letters())
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as found:
        load_tokenizer(config)
    expected = f"needs the package {package}: pip install 'lora_hf[multilingual]'"
    assert str(found.value) == f"{config.as_written}: its tokenizer {expected}"
    monkeypatch.setattr("lora_hf.models.load.find_spec", lambda name: object())  # it is installed
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_tokenizer(config)
