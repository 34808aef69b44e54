"""Texts that are far from what the embedded model knows: invented dialogues about a few everyday subjects."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from lora_hf.config.model import ASSETS
from lora_hf.files import read_object

MOST = 1.4
"""Tokens of the embedded model per word or sign, from which on a text is far: 99.3 % of the embedded sample's
dialogues have fewer, 99 % of DialogSum's more. The model has seen words as often as their pieces are long."""
LEAST = 20
"""Words and signs, below which a text is far: the shortest dialogue of the sample has 30."""
UNIT = re.compile(r"\w+|[^\w\s]")
BETTER = "a real base model, such as google/flan-t5-small, reads everyday English"
TO_TRY = f"it can show how the commands work, and not how well they do; {BETTER}"


def count_far(texts: Sequence[str], tokenizer: Any) -> int:
    """Return how many texts are far from what the model knows; 0 for any but the embedded one.

    Args:
        texts: without a prompt.
        tokenizer: the model's. A model with that of the embedded one was made of it: a merged folder is.
    """
    if not texts or not is_embedded(tokenizer):
        return 0
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    sizes = [len(UNIT.findall(text)) for text in texts]
    return sum(size < LEAST or len(row) > MOST * size for size, row in zip(sizes, rows, strict=True))


def is_embedded(tokenizer: Any) -> bool:
    """Return whether a tokenizer has the vocabulary of the embedded model."""
    known = _vocabulary()
    return len(tokenizer) < 2 * len(known) and tokenizer.get_vocab().items() >= known.items()


@cache
def _vocabulary() -> dict[str, int]:
    found: dict[str, int] = read_object(ASSETS / "tokenizer.json")["model"]["vocab"]
    return found


def far_data(texts: Sequence[str], tokenizer: Any, sources: str) -> str:
    """Return a sentence on a run's test texts, `sources`, if most of them are far; else an empty text."""
    if 2 * count_far(texts, tokenizer) <= len(texts):
        return ""
    return f"most test {sources} are far from the invented dialogues that the embedded model knows: {TO_TRY}"


def far_note(far: int, texts: int) -> str:
    """Return a sentence on texts that a model is given, of which some are far; empty if none is."""
    if not far:
        return ""
    what = "the text is" if texts == 1 else f"{far:,} of {texts:,} texts are"
    return (
        f"{what} far from the invented dialogues that the embedded model knows, so what it writes means "
        f"little; {BETTER}"
    )
