"""JSON files of a base as people edit and copy them: one error with the remedy, or the same model."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from support.broken_bases import (
    GENERATION,
    POINTER,
    all_of,
    assert_refused,
    change_settings,
    remove,
    rename,
    write,
)
from support.models import CPU, saved
from support.selection import slow_except
from support.tokenizer_files import tokenizer_files

from lora_hf import UserError
from lora_hf.adapters.checkpoint_io import read_tensors
from lora_hf.config import ModelConfig
from lora_hf.data.readers import read_rows
from lora_hf.models.base_files import TOKENIZER_FILES, settings_hash
from lora_hf.models.load import ASSETS, load_model, load_tokenizer

BROKEN = {
    "config.json is a pointer": (write("config.json", POINTER), "config.json is a Git LFS pointer"),
    "AWQ": (
        change_settings(quantization_config={"quant_method": "awq", "bits": 4}),
        "quant_method 'awq', but only weights quantized by bitsandbytes can be loaded; give the checkpoint",
    ),
    "bitsandbytes over dense weights": (
        change_settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "have 4 bits, but they are dense: remove that entry, and set model.load_in_4bit: true",
    ),
    "config.json is a list": (
        write("config.json", "[]"),
        "config.json does not hold a JSON object: down",
    ),
    "config.json is cut": (write("config.json", '{"model_type": '), "config.json is not readable as JSON"),
    "generation_config.json is null": (
        write(GENERATION, "null"),
        "generation_config.json does not hold a JSON object: download the model again",
    ),
    "special_tokens_map.json is a list": (
        write("special_tokens_map.json", "[]"),
        "does not hold a JSON object",
    ),
    "an unknown dtype": (
        change_settings(dtype="foo"),
        "config.json .*: dtype='foo' is not a type of",
    ),
    "no heads": (
        change_settings(num_heads=0, d_ff=-3),
        ".*d_ff=-3 must be positive; num_heads=0 must be",
    ),
    "no distance": (
        change_settings(relative_attention_max_distance=0),
        "relative_attention_max_distance=0 in its config.json must be above 16, half of relative_att",
    ),
    "a distance as in the first half": (
        change_settings(relative_attention_max_distance=16),
        "relative_attention_max_distance=16 in its config.json must be above 16",
    ),
    "two distances": (
        change_settings(relative_attention_num_buckets=2),
        "relative_attention_num_buckets=2 in its config.json must be at least 4",
    ),
    "no start": (
        all_of(change_settings(decoder_start_token_id=None, pad_token_id=None), remove(GENERATION)),
        "because it has no pad_token_id and no decoder_start_token_id: add it to its config.json",
    ),
    "no end": (
        all_of(change_settings(eos_token_id=None), remove(GENERATION)),
        "because it has no eos_token_id: add it to its config.json",
    ),
    "a start beyond the vocabulary": (
        change_settings(decoder_start_token_id=96),
        "decoder_start_token_id=96 in its config.json must be the number of a token, from 0 to 95",
    ),
    "an end beyond the vocabulary": (
        write(GENERATION, '{"decoder_start_token_id": 0, "eos_token_id": [1, 96]}'),
        r"eos_token_id=\[1, 96\] in its generation_config.json must be the number of a token",
    ),
    "bitsandbytes in no bits": (
        change_settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": False}),
        "sets neither load_in_4bit nor load_in_8bit: if the weights are dense, remove that entry",
    ),
    "quantization that is a list": (
        change_settings(quantization_config=[4]),
        r"quantization_config=\[4\] in its config.json must be an object",
    ),
    "a wrong type": (change_settings(d_ff="wide"), "cannot be loaded: .*'d_ff' expected int, got str"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_settings_are_one_error_with_the_remedy(
    change: Callable[[Path], None], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_refused(saved(tmp_path), tmp_path, change, words, caplog)


REPAIRED = {
    "the start is nowhere": all_of(change_settings(decoder_start_token_id=None), remove(GENERATION)),
    "the start is in config.json alone": write(GENERATION, '{"eos_token_id": 1, "pad_token_id": 0}'),
    "the start is in generation_config.json alone": change_settings(decoder_start_token_id=None),
    "the padding is in generation_config.json alone": change_settings(pad_token_id=None),
    "T5's base_model_prefix before each name": rename("transformer.{}".format),
    "outputs as tuples": change_settings(return_dict=False),
    "not an encoder-decoder": change_settings(is_encoder_decoder=False),
}


FAST = ("the start is nowhere", "the padding is in generation_config.json alone", "outputs as tuples")


@pytest.mark.parametrize("what", slow_except(FAST, REPAIRED, versions=True))
def test_what_one_file_of_a_base_lacks_or_says_wrong_changes_nothing(
    what: str, tmp_path: Path, batch: dict
) -> None:
    config = saved(tmp_path)
    whole = load_model(config, CPU)
    REPAIRED[what](tmp_path)
    model = load_model(config, CPU)
    assert torch.equal(model(**batch).loss, whole(**batch).loss)
    written = [one.generate(batch["input_ids"], max_new_tokens=4) for one in (model, whole)]
    assert torch.equal(*written)


def test_a_pointer_in_the_place_of_a_tokenizer_an_adapter_or_data_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(ASSETS, tmp_path / "base")
    (folder / "tokenizer.json").write_text(POINTER)
    with pytest.raises(UserError, match=r"tokenizer.json is a Git LFS pointer.*run `git lfs pull`"):
        load_tokenizer(ModelConfig(model_name_or_path=str(folder)))
    for name, read in (
        ("adapter_model.safetensors", read_tensors),
        ("a.jsonl", read_rows),
        ("a.csv", read_rows),
    ):
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*run `git lfs pull`"):
            read(tmp_path / name)


def test_settings_are_hashed_by_what_they_say_also_files_that_hold_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"d_model": 8, "dtype": "float32"}')
    (tmp_path / "tokenizer.json").write_text('{"truncation"')  # its own reader says what is wrong
    (tmp_path / "vocab.json").write_text('["a", "b"]')
    first = settings_hash(tmp_path)
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16",\n "d_model": 8}')
    assert settings_hash(tmp_path) == first
    (tmp_path / "vocab.json").write_text('["b", "a"]')
    assert settings_hash(tmp_path) != first


def test_the_settings_hash_holds_every_file_of_a_tokenizer() -> None:
    """FSMT's vocabularies are vocab-src.json and vocab-tgt.json, ProphetNet's is prophetnet.tokenizer."""
    files = tokenizer_files()
    assert {"vocab-src.json", "prophetnet.tokenizer", "target_vocab.json", "spiece.model"} < files
    assert [f for f in files if not any(fnmatch(f, pattern) for pattern in TOKENIZER_FILES)] == []
