"""One dialogue with its lines, facts, questions and summary."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from scripts.tools.generator.facts import draw
from scripts.tools.generator.names import Split, draw_person
from scripts.tools.generator.scenario import Ending, Question, Scenario, Turn, slots_of_turns
from scripts.tools.generator.scenarios import SCENARIOS
from scripts.tools.generator.smalltalk import CHATTER, FAREWELLS, GREETINGS, OPENERS, Exchange
from scripts.tools.generator.template import fill, slots_of

P_GREETING, P_CHATTER, P_DIGRESSION, P_FAREWELL, P_OPENER = 0.6, 0.5, 0.25, 0.3, 0.3
"""Probability of each kind of small talk in a dialogue, and of an opener before a turn."""


@dataclass(frozen=True)
class Line:
    """One line: its speaker, its text, and whether it is small talk."""

    speaker: str
    text: str
    is_small_talk: bool

    def __str__(self) -> str:
        return f"{self.speaker}: {self.text}"


@dataclass(frozen=True)
class Dialogue:
    """A dialogue, its facts by slot, its summary, and questions about it."""

    topic: str
    lines: tuple[Line, ...]
    facts: Mapping[str, str]
    summary: str
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        """The lines as the model reads them, each `Name: text`."""
        return "\n".join(map(str, self.lines))


def make_dialogue(split: Split, rng: random.Random) -> Dialogue:
    """Draw a scenario, an ending, facts and wordings of the split, and return the dialogue."""
    scenario = rng.choice(SCENARIOS)
    ending = rng.choice(scenario.endings)
    facts = _draw_facts(scenario, ending, split, rng)
    return Dialogue(
        topic=scenario.topic,
        lines=tuple(_write(scenario, ending, facts, split, rng)),
        facts=facts,
        summary=ending.summary.format_map(facts),
        questions=scenario.questions + ending.questions,
    )


def _draw_facts(scenario: Scenario, ending: Ending, split: Split, rng: random.Random) -> dict[str, str]:
    """Draw the speakers and a value for each slot; all values differ."""
    facts = {"a": draw_person(split, rng)}
    facts["b"] = draw("person", split, rng, facts.values())
    for slot in slots_of_turns(scenario.turns(ending)):
        facts[slot] = draw(slot, split, rng, facts.values())
    if "price_2" in facts:  # the buyer offers less than the seller asks
        facts["price_2"], facts["price"] = sorted((facts["price"], facts["price_2"]), key=int)
    return facts


def _write(
    scenario: Scenario, ending: Ending, facts: dict[str, str], split: Split, rng: random.Random
) -> list[Line]:
    """Return the lines of the turns in the split's wordings, with small talk before, between and after."""
    turns = [_line(turn, facts, split, rng) for turn in scenario.turns(ending)]
    exchanges = _Exchanges(facts, split, rng)
    lines = exchanges.draw(GREETINGS, P_GREETING) + exchanges.draw(CHATTER, P_CHATTER)
    # a digression comes after an answer of b, and never between the last question and its answer
    cut = 2 * rng.randint(0, len(turns) // 2 - 1) if len(turns) > 3 else 0
    lines += turns[:cut] + (exchanges.draw(CHATTER, P_DIGRESSION) if cut else []) + turns[cut:]
    return lines + exchanges.draw(FAREWELLS, P_FAREWELL)


def _line(turn: Turn, facts: dict[str, str], split: Split, rng: random.Random) -> Line:
    """Return the line of one turn, sometimes after an opener, as in "Listen, I have lost my key."."""
    text = fill(rng.choice(turn.wordings.of(split)), facts, rng)
    if rng.random() < P_OPENER:
        opener = rng.choice(OPENERS[split])
        first = text.split(maxsplit=1)[0]
        # these words are capitalized only because they begin a sentence
        text = f"{opener}, {text[0].lower() + text[1:]}" if first in _DECAPITALIZED else f"{opener}. {text}"
    return Line(facts[turn.speaker], text, is_small_talk=False)


_DECAPITALIZED = frozenset(
    "Do Would There How Are Is Can Could Where It That This We Take You Ask Go".split()
)


@dataclass
class _Exchanges:
    """Small talk between the two speakers of one dialogue, without repetitions."""

    facts: dict[str, str]
    split: Split
    rng: random.Random

    def __post_init__(self) -> None:
        self.used: set[Exchange] = set()

    def draw(self, stock: dict[Split, tuple[Exchange, ...]], probability: float) -> list[Line]:
        """Return the two lines of an exchange with the given probability, else none."""
        if self.rng.random() >= probability:
            return []
        while (exchange := self.rng.choice(stock[self.split])) in self.used:
            pass
        self.used.add(exchange)
        first, second = self.rng.sample((self.facts["a"], self.facts["b"]), 2)
        values = {"x": first, "y": second}
        slots = {*slots_of(exchange[0]), *slots_of(exchange[1])} - {"x", "y"}
        for slot in sorted(slots):  # sorted, because a set has no fixed order
            # another value than any fact: small talk must not look like a fact of the dialogue
            values[slot] = draw(slot, self.split, self.rng, [*self.facts.values(), *values.values()])
        speakers = (first, second)
        return [
            Line(who, fill(text, values, self.rng), is_small_talk=True)
            for who, text in zip(speakers, exchange, strict=True)
        ]
