"""The three splits, and the words that name them in files, folders and datasets."""

import re
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""The words that name a split: those of `datasets`."""


def split_named(text: str) -> Split | None:
    """Return the only split that the words of a name stand for, or None."""
    found = {NAMES[word] for word in re.findall("[a-z]+", text.lower()) if word in NAMES}
    return found.pop() if len(found) == 1 else None
