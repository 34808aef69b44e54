"""The decoder's inputs of a model that does not make them from labels."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.families import make_family
from support.tiny_trainer import Rows, tokenizer

from lora_hf.config import ModelConfig
from lora_hf.config.model import ASSETS
from lora_hf.data.collate import collator
from lora_hf.models.languages import target_vocabulary
from lora_hf.models.load import load_tokenizer


@pytest.mark.parametrize("family", ["FSMT", "Bart"])
def test_the_decoder_reads_the_labels_shifted_and_padding_does_not_count(family: str) -> None:
    model = make_family(family)
    rows = [row for row in Rows(4) if len(row["labels"]) != len(row["input_ids"])]
    batch = collator(tokenizer(), model)(rows)
    assert (batch["labels"] == -100).any()
    whole = model(**batch).loss
    tokens = [len(row["labels"]) for row in rows]
    alone = [model(**collator(tokenizer(), model)([row])).loss for row in rows]
    mean = sum(loss * n for loss, n in zip(alone, tokens, strict=True)) / sum(tokens)
    torch.testing.assert_close(whole, mean)


def test_a_tokenizer_that_pads_on_the_left_changes_no_row_of_a_batch(tmp_path: Path) -> None:
    folder = shutil.copytree(ASSETS, tmp_path / "base")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [5, 1], "labels": [7, 8, 9, 1]}]
    batch = collator(load_tokenizer(ModelConfig(model_name_or_path=str(folder))), make_family("T5"))(rows)
    assert batch["labels"].tolist() == [[7, 1, -100, -100], [7, 8, 9, 1]]
    assert batch["input_ids"].tolist() == [[5, 6, 1], [5, 1, 0]]


def test_fsmt_s_targets_are_in_the_target_s_vocabulary() -> None:
    tokenizer = SimpleNamespace(
        encoder={"a": 0, "b": 1}, decoder={0: "b", 1: "a"}, src_lang="en", tgt_lang="de", tgt_vocab_size=2
    )
    with target_vocabulary(tokenizer):
        assert (tokenizer.encoder, tokenizer.src_lang) == ({"b": 0, "a": 1}, "de")
    assert (tokenizer.encoder, tokenizer.src_lang) == ({"a": 0, "b": 1}, "en")
