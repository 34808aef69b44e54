"""The embedded sample: dialogues with summaries, written by a seeded generator.

Names, places and sentence templates of the three splits are disjoint, so that a model has to copy what it
reads; how a summary is worded is the same everywhere, for that is what fine-tuning is to learn.
"""

import random
from collections.abc import Iterator
from typing import get_args

from lora_hf.data.generator.dialogue import Dialogue, make_dialogue
from lora_hf.data.generator.names import Split

__all__ = ["Split", "dialogues", "generate", "iterate"]


def dialogues(split: Split, n: int, seed: int = 0, start: int = 0) -> list[Dialogue]:
    """Return dialogues number `start` to `start + n` of a split and seed, with all that is known about each.

    Each has a random stream of its own: number 7 is the same however many are asked for.

    Raises:
        ValueError: an unknown split, or a negative number.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is none of {', '.join(get_args(Split))}")
    if n < 0:
        raise ValueError(f"n={n} is negative")
    return [make_dialogue(split, random.Random(f"{split}-{seed}-{i}")) for i in range(start, start + n)]


def generate(split: Split, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return the first n rows of a split: `id`, `dialogue`, `summary`, `topic`.

    A pure function of its arguments; the first k rows of n are the rows of k.

    Raises:
        ValueError: an unknown split, or a negative number.
    """
    return [_row(split, seed, i, made) for i, made in enumerate(dialogues(split, n, seed))]


def iterate(split: Split, n: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """`generate`, a row at a time."""
    return (_row(split, seed, i, made) for i in range(n) for made in dialogues(split, 1, seed, i))


def _row(split: Split, seed: int, i: int, made: Dialogue) -> dict[str, str]:
    return {"id": f"{split}-{seed}-{i}", "dialogue": made.text, "summary": made.summary, "topic": made.topic}
