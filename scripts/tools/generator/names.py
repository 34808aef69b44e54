"""Invented names of people and places, made of syllables and divided among the three splits.

No test name occurs in training, so that a model has to copy it from the dialogue. The syllables occur in all
splits: a head that ends in a vowel and a tail that begins with a consonant. The tokenizer of the embedded
model splits a capitalized word at this place.
"""

import random
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

PERSON_HEADS = (
    "Ba Be Bri Ca Da De Do Fa Fe Fi Ga Ge Ha Hi Jo Ju Ka Ke Ki La Le Li Lo Lu Ma Me Mi Na Ne Ni No Pa Pe "
    "Ra Re Ri Ro Sa Se Si So Ta Te Ti To Va Ve Vi Wi Ya Ze"
).split()
PERSON_TAILS = (
    "bel dan dra lan len lia lin mar mel min mon na nar neth nia nor ra ran ren ric rin ris ro ron sa "
    "san sha sol tha ven vin vor wen win"
).split()
PLACE_HEADS = (
    "Ba Be Bra Bro Ca Cla Co Da Do Du Fa Fe Ga Gle Gra Ho Ke Ki La Lo Ma Mo No Pe Qui Ro Sea Sta Ta To "
    "Tri We Wi Ya"
).split()
PLACE_TAILS = (
    "bury combe dale den don ford gate ham ley low mere mont ness port ridge stead ster ton wick wood worth"
).split()
PLACE_KINDS = (
    "Cafe", "Park", "Hall", "Library", "Market", "Museum", "Theater", "Station", "Hotel", "Gardens",
    "Bakery", "School",
)  # fmt: skip

_SHARES: dict[Split, tuple[float, float]] = {
    "train": (0.0, 0.7),
    "validation": (0.7, 0.85),
    "test": (0.85, 1.0),
}


def _divide(heads: list[str], tails: list[str]) -> dict[Split, tuple[str, ...]]:
    """Return the names of each split: heads x tails, shuffled with a fixed seed, divided by `_SHARES`."""
    deck = sorted({head + tail for head in heads for tail in tails})
    random.Random(0).shuffle(deck)
    return {
        split: tuple(deck[round(start * len(deck)) : round(end * len(deck))])
        for split, (start, end) in _SHARES.items()
    }


PEOPLE = _divide(PERSON_HEADS, PERSON_TAILS)
"""First names of each split; the splits are disjoint."""

PLACE_STEMS = _divide(PLACE_HEADS, PLACE_TAILS)
"""First words of place names ("Torwick" in "Torwick Park") of each split; the splits are disjoint."""


def draw_person(split: Split, rng: random.Random) -> str:
    """Draw a first name of the split."""
    return rng.choice(PEOPLE[split])


def draw_place(split: Split, rng: random.Random) -> str:
    """Draw a place of the split: an invented first word and a kind of place, such as "Torwick Park"."""
    return f"{rng.choice(PLACE_STEMS[split])} {rng.choice(PLACE_KINDS)}"
