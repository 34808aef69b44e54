"""One dialogue with all that is known about it: lines, facts, questions, summary."""

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


@dataclass(frozen=True)
class Line:
    """Who says what, and whether it belongs to the matter or is small talk."""

    speaker: str
    text: str
    is_small_talk: bool

    def __str__(self) -> str:
        return f"{self.speaker}: {self.text}"


@dataclass(frozen=True)
class Dialogue:
    """A dialogue, the facts by slot, and the questions that can be asked about it."""

    topic: str
    lines: tuple[Line, ...]
    facts: Mapping[str, str]
    summary: str
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        """The lines as the model reads them, "Name: what is said", one below the other."""
        return "\n".join(map(str, self.lines))


def make_dialogue(split: Split, rng: random.Random) -> Dialogue:
    """Draw a scenario, how it ends, the facts and the words, all from the split's share."""
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
    """Draw the speakers and one value for each slot, no two alike."""
    facts = {"a": draw_person(split, rng)}
    facts["b"] = draw("person", split, rng, facts.values())
    for slot in slots_of_turns(scenario.turns(ending)):
        facts[slot] = draw(slot, split, rng, facts.values())
    if "price_2" in facts:  # whoever haggles offers less than was asked
        facts["price_2"], facts["price"] = sorted((facts["price"], facts["price_2"]), key=int)
    return facts


def _write(
    scenario: Scenario, ending: Ending, facts: dict[str, str], split: Split, rng: random.Random
) -> list[Line]:
    """Say the turns in the split's words, with small talk before, between and after."""
    matter = [_say(turn, facts, split, rng) for turn in scenario.turns(ending)]
    exchanges = _Exchanges(facts, split, rng)
    lines = exchanges.draw(GREETINGS, P_GREETING) + exchanges.draw(CHATTER, P_CHATTER)
    # a digression interrupts only after an answer of b's, and never splits the last question from its answer
    cut = 2 * rng.randint(0, len(matter) // 2 - 1) if len(matter) > 3 else 0
    lines += matter[:cut] + (exchanges.draw(CHATTER, P_DIGRESSION) if cut else []) + matter[cut:]
    return lines + exchanges.draw(FAREWELLS, P_FAREWELL)


def _say(turn: Turn, facts: dict[str, str], split: Split, rng: random.Random) -> Line:
    """Say one turn, now and then after an opener: "Listen, I have lost my key."."""
    text = fill(rng.choice(turn.wordings.of(split)), facts, rng)
    if rng.random() < P_OPENER:
        opener = rng.choice(OPENERS[split])
        first = text.split(maxsplit=1)[0]
        # only a word that is a capital for no other reason may lose it
        text = f"{opener}, {text[0].lower() + text[1:]}" if first in _DECAPITALIZED else f"{opener}. {text}"
    return Line(facts[turn.speaker], text, is_small_talk=False)


_DECAPITALIZED = frozenset(
    "Do Would There How Are Is Can Could Where It That This We Take You Ask Go".split()
)


@dataclass
class _Exchanges:
    """Small talk between the two speakers of one dialogue, none of it said twice."""

    facts: dict[str, str]
    split: Split
    rng: random.Random

    def __post_init__(self) -> None:
        self.said: set[Exchange] = set()

    def draw(self, stock: dict[Split, tuple[Exchange, ...]], probability: float) -> list[Line]:
        """Return two lines with the given probability, else none."""
        if self.rng.random() >= probability:
            return []
        while (exchange := self.rng.choice(stock[self.split])) in self.said:
            pass
        self.said.add(exchange)
        first, second = self.rng.sample((self.facts["a"], self.facts["b"]), 2)
        values = {"x": first, "y": second}
        slots = {*slots_of(exchange[0]), *slots_of(exchange[1])} - {"x", "y"}
        for slot in sorted(slots):  # sorted, because a set has no fixed order
            # a value of its own: what is said in passing must not be mistaken for a fact
            values[slot] = draw(slot, self.split, self.rng, [*self.facts.values(), *values.values()])
        speakers = (first, second)
        return [
            Line(who, fill(text, values, self.rng), is_small_talk=True)
            for who, text in zip(speakers, exchange, strict=True)
        ]
