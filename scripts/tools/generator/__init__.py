"""Seeded generator of dialogues with summaries: the source of the embedded sample and the embedded model.

Names, places and sentence templates of the three splits are disjoint, so that a model has to copy what it
reads. The wording of summaries is the same in all splits, because that is what fine-tuning has to learn.
"""

import random
from typing import get_args

from scripts.tools.generator.dialogue import Dialogue, make_dialogue
from scripts.tools.generator.names import Split

__all__ = ["Split", "dialogues", "generate"]


def dialogues(split: Split, n: int, seed: int = 0, start: int = 0) -> list[Dialogue]:
    """Return dialogues number `start` to `start + n` of a split and seed, with their facts and questions.

    Each has its own random stream: number 7 is the same regardless of how many are requested.

    Raises:
        ValueError: an unknown split, or a negative number.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} must be one of {', '.join(get_args(Split))}")
    if n < 0:
        raise ValueError(f"n={n} must not be negative")
    return [make_dialogue(split, random.Random(f"{split}-{seed}-{i}")) for i in range(start, start + n)]


def generate(split: Split, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return the first n rows of a split: `id`, `dialogue`, `summary`, `topic`.

    A pure function of its arguments; the first k rows of n are the rows of k.

    Raises:
        ValueError: an unknown split, or a negative number.
    """
    return [
        {"id": f"{split}-{seed}-{i}", "dialogue": made.text, "summary": made.summary, "topic": made.topic}
        for i, made in enumerate(dialogues(split, n, seed))
    ]
