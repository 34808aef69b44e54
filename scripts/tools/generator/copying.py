"""Copying tasks on random words, the first thing that the embedded model is trained on.

Trained on the mixture of tasks alone, a small model learns frequent answers and hardly attends to its input.
"""

import random

from scripts.tools.generator.facts import KINDS
from scripts.tools.generator.names import draw_person
from scripts.tools.generator.template import fill

_KINDS = ["person", "person", "person", "place", "time", "price", "number", "goods", "day", "thing"]


def _words(rng: random.Random) -> list[str]:
    return [KINDS[rng.choice(_KINDS)]("train", rng) for _ in range(rng.randint(3, 7))]


def repeat_words(rng: random.Random) -> tuple[str, str]:
    """Make a task: repeat a list of words."""
    text = " ".join(_words(rng))
    return f"[Repeat|Copy] the words.\n\n{text}\n\nWords: ", text


def word_after(rng: random.Random) -> tuple[str, str]:
    """Make a task: name the word after or before a given one."""
    words = list(dict.fromkeys(_words(rng)))
    place = rng.randrange(len(words) - 1)
    known, wanted, side = rng.choice(((place, place + 1, "after"), (place + 1, place, "before")))
    return f"[What|Which word] comes {side} {words[known]}?\n\n{', '.join(words)}\n\nWord: ", words[wanted]


def word_of(rng: random.Random) -> tuple[str, str]:
    """Make a task: in lines like those of a dialogue, find the words of a person or their speaker."""
    names = list({draw_person("train", rng): None for _ in range(rng.randint(2, 4))})
    said = {name: " ".join(_words(rng)[:2]) for name in names}
    name = rng.choice(names)
    text = "\n".join(f"{name}: {words}" for name, words in said.items())
    if rng.random() < 0.5:
        ask = f"[What does {name} say?|Repeat the line of {name}.]"
        return f"{ask}\n\n{text}\n\nLine: ", f"{name}: {said[name]}"
    return f'[Who says|Who said] "{said[name]}"\n\n{text}\n\nName: ', name


def make_copying_example(rng: random.Random) -> tuple[str, str]:
    """Return a prompt and its answer for one of the copying tasks."""
    prompt, answer = rng.choice((repeat_words, word_after, word_of))(rng)
    return fill(prompt, {}, rng), answer
