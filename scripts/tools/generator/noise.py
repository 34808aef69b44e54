"""Words misheard: part of what the speakers say, facts apart, is dropped or replaced by other words.

A reader of few sentence templates learns them by heart and is lost in sentences of other make. Some noise
while the instruction tasks are learnt makes it look at the facts and at the words around them instead.
"""

import random
from dataclasses import replace
from functools import cache

from scripts.tools.generator.dialogue import Dialogue, Line
from scripts.tools.generator.scenarios import SCENARIOS
from scripts.tools.generator.template import expand

P_NOISY, P_DROP, P_REPLACE = 0.5, 0.06, 0.10


@cache
def _vocabulary() -> tuple[str, ...]:
    """Every lower-case word of the training sentences, each as often as it occurs there."""
    turns = {turn: None for s in SCENARIOS for ending in s.endings for turn in s.turns(ending)}
    sentences = [text for turn in turns for t in turn.wordings.train for text in expand(t)]
    return tuple(word for text in sentences for word in text.split() if word.isalpha() and word.islower())


def garble(made: Dialogue, rng: random.Random) -> Dialogue:
    """Return the dialogue, or with probability `P_NOISY` one with words misheard; facts stay as they are."""
    if rng.random() >= P_NOISY:
        return made
    kept = {word for value in made.facts.values() for word in value.split()}
    lines = (Line(line.speaker, _garble(line.text, kept, rng), line.is_small_talk) for line in made.lines)
    return replace(made, lines=tuple(lines))


def _garble(text: str, kept: set[str], rng: random.Random) -> str:
    words = []
    for word in text.split():
        plain, luck = word.isalpha() and word.islower() and word not in kept, rng.random()
        if not plain or luck >= P_DROP + P_REPLACE:
            words.append(word)
        elif luck >= P_DROP:
            words.append(rng.choice(_vocabulary()))
    return " ".join(words) or text
