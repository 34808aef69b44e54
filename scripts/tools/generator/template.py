"""Sentence templates: `{slot}` stands for a fact, `[one|another]` for a choice of words.

`[Do you want|Would you like] to come to {activity}?` stands for two sentences. Choices do not nest.
"""

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from scripts.tools.generator.names import Split

_CHOICE = re.compile(r"\[([^]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Wordings:
    """Templates of one statement in different words; each split has its own."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        """Return the templates of one split."""
        templates: tuple[str, ...] = getattr(self, split)
        return templates


@cache
def _parts(template: str) -> tuple[tuple[str, ...], ...]:
    """Split a template into its parts, each a tuple of alternatives; plain text has one."""
    pieces = _CHOICE.split(template)  # plain text and choices alternate
    return tuple(tuple(piece.split("|")) if i % 2 else (piece,) for i, piece in enumerate(pieces))


def fill(template: str, facts: Mapping[str, str], rng: random.Random) -> str:
    """Draw one wording of the template and fill in the facts.

    Raises:
        KeyError: `facts` lacks a slot of the template.
    """
    text = "".join(part[0] if len(part) == 1 else rng.choice(part) for part in _parts(template))
    return text.format_map(facts)


def slots_of(template: str) -> tuple[str, ...]:
    """Return the names of the template's slots in order of appearance."""
    return tuple(_SLOT.findall(template))


def expand(template: str) -> Iterator[str]:
    """Yield every wording of the template, with its slots unfilled."""
    for choice in itertools.product(*_parts(template)):
        yield "".join(choice)
