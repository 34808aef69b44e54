"""Character and word error rate by jiwer: edits over the length of the references, lower is better.

Of several references the one with the lowest rate counts for an example. An empty reference adds its edits,
and no length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lora_hf.errors import UserError
from lora_hf.evaluation.metrics.packages import imported
from lora_hf.evaluation.metrics.values import Measured, ScoreValues
from lora_hf.evaluation.words import is_spaceless

PACKAGE = "jiwer"
SPACELESS_NOTE = "the references have no spaces between words, so a whole phrase counts as one word; use cer"
"""Fact of a score by words between spaces, of texts that have none."""


def of_jiwer(
    name: str, function: str, predictions: list[str], references: list[list[str]], language: str | None
) -> Measured:
    """Score by a function of jiwer that counts edits."""
    process = getattr(imported(PACKAGE), function)
    rows = [
        min((_edits(process(text, prediction)) for text in texts), key=lambda row: row[0] / max(row[1], 1))
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    if not any(length for _, length in rows):
        raise UserError(f"{name}: all references are empty, so there is no length to divide the edits by")
    is_note = name == "wer" and is_spaceless(text for texts in references for text in texts)
    return Measured(
        {name: ScoreValues(np.array(rows, dtype=np.float64), _rate)},
        facts={f"{name}_note": SPACELESS_NOTE} if is_note else {},
    )


def _edits(found: Any) -> tuple[int, int]:
    """Return the edits, and the length of the reference."""
    edits = found.substitutions + found.deletions + found.insertions
    return edits, found.hits + found.substitutions + found.deletions


def _rate(sums: np.ndarray) -> np.ndarray:
    # one example, and so a resample, may have empty references alone
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


cer: Callable[..., Measured] = partial(of_jiwer, "cer", "process_characters")
wer: Callable[..., Measured] = partial(of_jiwer, "wer", "process_words")


def check() -> None:
    """Raise a UserError if jiwer is missing."""
    imported(PACKAGE)
