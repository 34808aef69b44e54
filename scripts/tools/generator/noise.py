"""Noise: some words of a dialogue that are not facts are dropped or replaced by other words.

A model that is trained on few sentence templates memorizes them and fails on others. With noise in the
instruction tasks it learns to attend to the facts and the words around them.
"""

import random
from dataclasses import replace
from functools import cache

from scripts.tools.generator.dialogue import Dialogue, Line
from scripts.tools.generator.scenarios import SCENARIOS
from scripts.tools.generator.template import expand

P_NOISY, P_DROP, P_REPLACE = 0.5, 0.06, 0.10
"""Probability that a dialogue is noisy, and that each of its words is dropped or replaced."""


@cache
def _vocabulary() -> tuple[str, ...]:
    """Return the lower-case words of the training sentences, each as often as it occurs."""
    turns = {turn: None for s in SCENARIOS for ending in s.endings for turn in s.turns(ending)}
    sentences = [text for turn in turns for t in turn.wordings.train for text in expand(t)]
    return tuple(word for text in sentences for word in text.split() if word.isalpha() and word.islower())


def garble(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """Return the dialogue, with probability `P_NOISY` with some words changed; facts are unchanged."""
    if rng.random() >= P_NOISY:
        return dialogue
    kept = {word for value in dialogue.facts.values() for word in value.split()}
    lines = (Line(line.speaker, _garble(line.text, kept, rng), line.is_small_talk) for line in dialogue.lines)
    return replace(dialogue, lines=tuple(lines))


def _garble(text: str, kept: set[str], rng: random.Random) -> str:
    words = []
    for word in text.split():
        changeable, draw = word.isalpha() and word.islower() and word not in kept, rng.random()
        if not changeable or draw >= P_DROP + P_REPLACE:
            words.append(word)
        elif draw >= P_DROP:
            words.append(rng.choice(_vocabulary()))
    return " ".join(words) or text
