"""Tokenizers that are broken or do not fit the model, in the words of the doctor."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.broken_bases import change_settings, change_tokenizer, remove, write

from lora_hf import UserError
from lora_hf.config import ModelConfig
from lora_hf.doctor.base import tokenizer as doctor_tokenizer
from lora_hf.models.load import ASSETS, load_tokenizer

TOKENIZERS = {
    "no tokenizer_config.json": (
        remove("tokenizer_config.json"),
        r"cannot be loaded \(TypeError: .*holds tokenizer.json, but no tokenizer_config.json, which names",
    ),
    "a list": (write("tokenizer_config.json", "[]"), "tokenizer_config.json does not hold a JSON object"),
    "an empty object": (
        write("tokenizer.json", "{}"),
        r"\(KeyError: 'added_tokens'\). The folder holds",
    ),
    "a number for a token": (change_tokenizer(eos_token=3), "Special token eos_token has to be either str"),
    "a text for a length": (
        change_tokenizer(model_max_length="512"),
        "model_max_length='512' must be a num",
    ),
    "the class of another family": (
        change_tokenizer(tokenizer_class="BertTokenizer"),
        r"the tokenizer has 1,603 tokens, but the model has embeddings for 1,600; beyond them are '\[CLS\]'",
    ),
    "a smaller model": (change_settings(vocab_size=200), "but the model has embeddings for 200; beyond them"),
}


@pytest.mark.parametrize(("change", "words"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_broken_tokenizer_is_one_error_with_the_remedy(
    change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(ASSETS, tmp_path / "base")
    change(folder)
    config = ModelConfig(model_name_or_path=str(folder))
    with pytest.raises(UserError, match=words) as loading:
        load_tokenizer(config)
    with pytest.raises(UserError) as checking:
        list(doctor_tokenizer(config, folder))
    assert str(checking.value) == str(loading.value)


def test_a_mask_token_beyond_the_embeddings_is_no_fault(tmp_path: Path) -> None:
    """A published BART has 50,264 embeddings and a tokenizer of 50,265 tokens, the last `<mask>`."""
    folder = shutil.copytree(ASSETS, tmp_path / "base")
    change_tokenizer(mask_token="<mask>")(folder)
    assert len(load_tokenizer(ModelConfig(model_name_or_path=str(folder)))) == 1601
