"""Parts of a scenario: turns in several wordings, and endings with their summaries and questions."""

from dataclasses import dataclass
from typing import Literal

from scripts.tools.generator.template import Wordings, slots_of


@dataclass(frozen=True)
class Turn:
    """One line of a dialogue: its speaker and its wordings."""

    speaker: Literal["a", "b"]
    wordings: Wordings


@dataclass(frozen=True)
class Question:
    """A question about a dialogue and its answer, both with slots. The answer is never a whole summary."""

    asks: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Ending:
    """An ending of a scenario: its last turns, the summary of the dialogue, and questions about it."""

    turns: tuple[Turn, ...]
    summary: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Scenario:
    """An everyday situation between the speakers a and b; questions about it hold for every ending."""

    topic: str
    opening: tuple[Turn, ...]
    endings: tuple[Ending, ...]
    questions: tuple[Question, ...]

    def turns(self, ending: Ending) -> tuple[Turn, ...]:
        """Return all turns of a dialogue with this ending."""
        return self.opening + ending.turns


def slots_of_turns(turns: tuple[Turn, ...]) -> tuple[str, ...]:
    """Return the distinct slots of the turns, without the speakers a and b."""
    seen: dict[str, None] = {}
    for turn in turns:
        for slot in slots_of(turn.wordings.train[0]):
            seen[slot] = None
    return tuple(slot for slot in seen if slot not in ("a", "b"))


def turn(speaker: Literal["a", "b"], train: str, validation: str, test: str) -> Turn:
    """Make a turn from three blocks of text with one template per line."""
    return Turn(speaker, Wordings(_lines(train), _lines(validation), _lines(test)))


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in block.strip().splitlines())


def question(asks: str, answer: str) -> Question:
    """Make a question from its wordings, separated by slashes, and its answer."""
    return Question(tuple(ask.strip() for ask in asks.split("/")), answer)
