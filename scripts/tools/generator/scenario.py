"""What a scenario consists of: turns in several wordings, and ways to end, each with its summary."""

from dataclasses import dataclass
from typing import Literal

from scripts.tools.generator.template import Wordings, slots_of


@dataclass(frozen=True)
class Turn:
    """One line of a dialogue: who speaks, and the ways to say it."""

    speaker: Literal["a", "b"]
    wordings: Wordings


@dataclass(frozen=True)
class Question:
    """A question about a dialogue and its answer, both with slots; the answer is never a whole summary."""

    asks: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Ending:
    """How a scenario ends: its last turns, the summary of the whole dialogue, the questions that fit."""

    turns: tuple[Turn, ...]
    summary: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Scenario:
    """An everyday situation between a and b. The slots are those of its templates."""

    topic: str
    opening: tuple[Turn, ...]
    endings: tuple[Ending, ...]
    questions: tuple[Question, ...]

    def turns(self, ending: Ending) -> tuple[Turn, ...]:
        """Return all turns of the dialogue that ends so."""
        return self.opening + ending.turns


def slots_of_turns(turns: tuple[Turn, ...]) -> tuple[str, ...]:
    """Return the slots that the turns fill, each once, without the speakers a and b."""
    seen: dict[str, None] = {}
    for turn in turns:
        for slot in slots_of(turn.wordings.train[0]):
            seen[slot] = None
    return tuple(slot for slot in seen if slot not in ("a", "b"))


def turn(speaker: Literal["a", "b"], train: str, validation: str, test: str) -> Turn:
    """Make a turn from three blocks of text with one template a line."""
    return Turn(speaker, Wordings(_lines(train), _lines(validation), _lines(test)))


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in block.strip().splitlines())


def question(asks: str, answer: str) -> Question:
    """Make a question from its wordings, separated by slashes, and its answer."""
    return Question(tuple(ask.strip() for ask in asks.split("/")), answer)
