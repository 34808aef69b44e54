"""Tokenizers that need a package of the extra `multilingual`, built here: labels in the target's language."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.families import family_settings

from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.data.examples import Example
from lora_hf.data.tokenize import TokenizedDialogues, encode_sources
from lora_hf.models.languages import decode, languages
from lora_hf.models.load import load_tokenizer
from lora_hf.saved.find_adapter import own_tokenizer

TEXTS = ["anna and ben meet at noon", "cora comes later", "they have lunch together", "no one is late"] * 4
EXAMPLE = Example("a", "anna and ben meet", ("they meet",))


def pieces() -> tuple[bytes, list[str]]:
    """A model of sentencepiece for `TEXTS`, and its pieces."""
    package = pytest.importorskip("sentencepiece", reason="needs lora_hf[multilingual]: sentencepiece")
    written = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=3,
    )
    model = package.SentencePieceProcessor(model_proto=written.getvalue())
    return written.getvalue(), [model.id_to_piece(i) for i in range(len(model))]


def m2m100(folder: Path) -> None:
    model, words = pieces()
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words[4:]])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "M2M100Tokenizer", "src_lang": "en"}')


def plbart(folder: Path) -> None:
    (folder / "sentencepiece.bpe.model").write_bytes(pieces()[0])
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PLBartTokenizer"}')


def marian(folder: Path) -> None:
    model, words = pieces()
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(model)
    vocabulary = {word: i for i, word in enumerate(["</s>", "<unk>", *words[4:], "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')


def mt5(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(pieces()[0])
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')


def fsmt(folder: Path) -> None:
    pytest.importorskip("sacremoses", reason="needs lora_hf[multilingual]: sacremoses")
    letters = sorted({letter for text in TEXTS for letter in text if letter != " "})
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(f"{letter}</w>" for letter in letters)]
    for name, order in {"src": words, "tgt": [*words[:4], *words[:3:-1]]}.items():
        vocabulary = {word: i for i, word in enumerate(order)}
        (folder / f"vocab-{name}.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("")
    settings = {"tokenizer_class": "FSMTTokenizer", "langs": ["en", "de"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


TOKENIZERS: dict[str, tuple[Callable[[Path], None], str, dict[str, Any]]] = {
    "M2M100": (m2m100, "M2M100", {"source_language": "en", "target_language": "de"}),
    "PLBart": (plbart, "PLBart", {"source_language": "java", "target_language": "python"}),
    "Marian": (marian, "Marian", {}),
    "mT5": (mt5, "MT5", {}),
    "FSMT": (fsmt, "FSMT", {}),
}
"""Name -> what writes its files, the family of its model, and the languages of the data."""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_by_its_package_gives_sources_and_labels_that_read_as_their_texts(
    name: str, tmp_path: Path
) -> None:
    write, family, spoken = TOKENIZERS[name]
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(family_settings(family).to_dict()))
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path)))
    data = DataConfig(prompt="{dialogue}", **spoken)
    rows = TokenizedDialogues([EXAMPLE], tokenizer, data, "train")
    labels, end = rows.rows[0]["labels"], tokenizer.eos_token_id
    assert labels.count(end) == 1 and not rows.unknown
    assert decode(tokenizer, [labels])[0].strip() == EXAMPLE.references[0]
    known = languages(tokenizer)
    around = {field: known[code] for field, code in spoken.items()}
    (source,) = encode_sources([EXAMPLE.dialogue], tokenizer, data).ids
    assert end in source[-2:]
    assert {*source} & {*known.values()} == {*around.values()} - {around.get("target_language")}
    assert {*labels} & {*known.values()} == {*around.values()} - {around.get("source_language")}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_copy_of_a_tokenizer_by_its_package_is_one_that_reads_alike(name: str, tmp_path: Path) -> None:
    """M2M100's fails on labels without a language, which scripts choose later."""
    write, family, _ = TOKENIZERS[name]
    for folder in (tmp_path / "base", tmp_path / "adapter"):
        folder.mkdir()
        write(folder)
    (tmp_path / "base/config.json").write_text(json.dumps(family_settings(family).to_dict()))
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA"}')
    base = ModelConfig(model_name_or_path=str(tmp_path / "base"))
    assert own_tokenizer(SavedAdapter(tmp_path / "adapter"), base, load_tokenizer(base)) is None
