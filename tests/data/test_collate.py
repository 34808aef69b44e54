"""The decoder's inputs of a model that does not make them from labels."""

from types import SimpleNamespace

import pytest
import torch
from support.families import make_family
from support.tiny_trainer import Rows, tokenizer

from lora_hf.data.collate import collator
from lora_hf.models.languages import target_vocabulary


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


def test_fsmt_s_targets_are_in_the_target_s_vocabulary() -> None:
    tokenizer = SimpleNamespace(
        encoder={"a": 0, "b": 1}, decoder={0: "b", 1: "a"}, src_lang="en", tgt_lang="de", tgt_vocab_size=2
    )
    with target_vocabulary(tokenizer):
        assert (tokenizer.encoder, tokenizer.src_lang) == ({"b": 0, "a": 1}, "de")
    assert (tokenizer.encoder, tokenizer.src_lang) == ({"a": 0, "b": 1}, "en")
