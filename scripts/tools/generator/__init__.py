"""Seeded generator of dialogues with summaries: the source of the embedded sample and the embedded model.

Names, places and sentence templates of the three splits are disjoint, so that a model has to copy names and
facts from its input. Summaries have the same wording in all splits, because fine-tuning has to learn it.
"""

import random
from typing import get_args

from scripts.tools.generator.dialogue import Dialogue, make_dialogue
from scripts.tools.generator.names import Split

__all__ = ["Split", "dialogues", "generate"]


def dialogues(split: Split, n: int, seed: int = 0, first: int = 0) -> list[Dialogue]:
    """Return the dialogues with numbers `first` to `first + n - 1`, with their facts and questions.

    Each number has its own random stream: dialogue 7 does not depend on how many are requested.

    Raises:
        ValueError: the split is unknown, or `n` is negative.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} must be one of {', '.join(get_args(Split))}")
    if n < 0:
        raise ValueError(f"n={n} must not be negative")
    return [make_dialogue(split, random.Random(f"{split}-{seed}-{i}")) for i in range(first, first + n)]


def generate(split: Split, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return the first n rows of a split: `id`, `dialogue`, `summary`, `topic`.

    A pure function of its arguments: for k < n, `generate(split, k)` equals `generate(split, n)[:k]`.

    Raises:
        ValueError: the split is unknown, or `n` is negative.
    """
    return [
        {
            "id": f"{split}-{seed}-{i}",
            "dialogue": dialogue.text,
            "summary": dialogue.summary,
            "topic": dialogue.topic,
        }
        for i, dialogue in enumerate(dialogues(split, n, seed))
    ]
