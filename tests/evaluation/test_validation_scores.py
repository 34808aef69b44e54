"""Scores of evaluations during training are those of the test split: against whole references."""

import numpy as np
import pytest
from support.letters import letters
from transformers.trainer_utils import EvalPrediction

from lora_hf.config import DataConfig
from lora_hf.data.examples import Example
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.evaluation.evaluate import ValidationScores
from lora_hf.evaluation.metrics import Scoring

TEXTS = ["ab cd ef gh ij kl", "ab cd xy", "zz"]


def padded(rows: list[list[int]]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.array([row + [-100] * (longest - len(row)) for row in rows])


def test_outputs_are_compared_with_whole_references_in_whichever_order_they_come() -> None:
    """What writes labels that are cut would score 1 by them."""
    tokenizer = letters()
    examples = [Example(str(n), f"A: {text}", (text,)) for n, text in enumerate(TEXTS)]
    config = DataConfig(prompt="{dialogue}", max_source_length=64, max_target_length=4)
    rows = TokenizedDialogues(examples, tokenizer, config, "validation")
    labels = [row["labels"] for row in rows.rows]
    assert len({tuple(row) for row in labels}) == 2  # the first two are cut to the same
    written = [tokenizer.decode(row, skip_special_tokens=True) for row in labels]
    expected = Scoring().measure(written, [[text] for text in TEXTS]).scores["rouge1"].value
    for order in ([0, 1, 2], [2, 0, 1]):
        ids = padded([labels[i] for i in order])
        found = ValidationScores(tokenizer, None, rows)(EvalPrediction(ids, ids))
        assert found["rouge1"] == pytest.approx(expected) and expected < 0.9
    ids = padded(labels)
    assert ValidationScores(tokenizer)(EvalPrediction(ids, ids))["rouge1"] == 1  # rows that are not known
