"""Instruction tasks over dialogues, as FLAN mixes many tasks: all that a reader can do, except to summarize.

Each task is a function from a dialogue to an instruction, a cue and an answer. The prompt has the shape of
the prompt that fine-tuning uses, so that only the instruction tells what is wanted.
"""

import random
import re
from collections.abc import Callable
from typing import NamedTuple

from scripts.tools.generator.dialogue import Dialogue, Line
from scripts.tools.generator.template import fill


class Task(NamedTuple):
    """What is asked, the word before the answer, the answer, and the text it is about if not the dialogue."""

    instruction: str
    cue: str
    answer: str
    text: str | None = None


ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def who_said(made: Dialogue, rng: random.Random) -> Task:
    """Name the speaker of a quoted line."""
    line = rng.choice(made.lines)
    ask = fill("[Who said|Who says|Name the speaker of]", {}, rng)
    return Task(f'{ask} "{line.text}"', "Name: ", line.speaker)


def repeat_line(made: Dialogue, rng: random.Random) -> Task:
    """Repeat the first, the last or the n-th line."""
    place = rng.randrange(-1, min(len(made.lines), len(ORDINALS)))
    ordinal = "last" if place < 0 else ORDINALS[place]
    ask = fill(f"[Repeat|Copy|Write down] the {ordinal} line of the [conversation|dialogue].", {}, rng)
    return Task(ask, "Line: ", str(made.lines[place]))


def next_line(made: Dialogue, rng: random.Random) -> Task:
    """Copy the line that follows a quoted one."""
    place = rng.randrange(len(made.lines) - 1)
    ask = fill("[What comes after|What is the answer to|Which line follows]", {}, rng)
    return Task(f'{ask} "{made.lines[place].text}"', "Line: ", str(made.lines[place + 1]))


def name_speakers(made: Dialogue, rng: random.Random) -> Task:
    """Name both speakers in order of appearance."""
    ask = fill("[Who is talking?|Name the speakers.|Who takes part in the conversation?]", {}, rng)
    return Task(ask, "Names: ", " and ".join(dict.fromkeys(line.speaker for line in made.lines)))


def name_topic(made: Dialogue, rng: random.Random) -> Task:
    """Say in a word or two what kind of conversation it is."""
    ask = fill("[What kind of conversation is this?|What is the topic of it?|Name the topic.]", {}, rng)
    return Task(ask, "Topic: ", made.topic)


def find_small_talk(made: Dialogue, rng: random.Random) -> Task:
    """Copy the first line that is small talk, or the first that is not."""
    wanted = rng.random() < 0.5
    line = next((line for line in made.lines if line.is_small_talk == wanted), None)
    kind = "[is small talk|does not matter]" if wanted else "[is not small talk|matters]"
    ask = fill(f"Which line {kind} first?", {}, rng)
    return Task(ask, "Line: ", str(line) if line else "none")


def restore_blanks(made: Dialogue, rng: random.Random) -> Task:
    """Give the words that were struck out of a line."""
    lines = list(map(str, made.lines))
    place = rng.randrange(len(lines))
    words = lines[place].split(" ")
    start = rng.randrange(len(words))
    end = min(len(words), start + rng.randint(1, 3))
    lines[place] = " ".join([*words[:start], "___", *words[end:]])
    ask = fill("[Restore the blanks.|Fill the gap.|Which words are missing?]", {}, rng)
    return Task(ask, "Words: ", " ".join(words[start:end]), "\n".join(lines))


def restore_line(made: Dialogue, rng: random.Random) -> Task:
    """Continue a quoted beginning as the conversation has it."""
    line = str(rng.choice(made.lines))
    cut = line.find(" ", len(line) // 3)
    if cut < 0:
        return repeat_line(made, rng)
    ask = fill("[Complete|Continue|Finish] the line", {}, rng)
    return Task(f'{ask} "{line[:cut]}"', "Line: ", line)


def answer_question(made: Dialogue, rng: random.Random) -> Task:
    """Answer one question about the matter."""
    asked = rng.choice(made.questions)
    ask = fill(rng.choice(asked.asks), made.facts, rng)
    return Task(ask, "Answer: ", asked.answer.format_map(made.facts))


def answer_questions(made: Dialogue, rng: random.Random) -> Task:
    """Answer two or three questions in a row."""
    asked = rng.sample(made.questions, rng.randint(2, min(3, len(made.questions))))
    ask = " ".join(fill(rng.choice(one.asks), made.facts, rng) for one in asked)
    return Task(ask, "Answers: ", " ".join(one.answer.format_map(made.facts) for one in asked))


def find_source(made: Dialogue, rng: random.Random) -> Task:
    """Copy the line of the matter that states a fact."""
    matter = [line for line in made.lines if not line.is_small_talk]
    found = [(value, line) for value in made.facts.values() for line in matter if _mentions(line, value)]
    if not found:
        return repeat_line(made, rng)
    value, _ = rng.choice(found)
    line = next(line for line in matter if _mentions(line, value))
    ask = fill("[Which line mentions {value}?|Copy the line about {value}.]", {"value": value}, rng)
    return Task(ask, "Line: ", str(line))


def _mentions(line: Line, value: str) -> bool:
    return re.search(rf"\b{re.escape(value)}\b", line.text) is not None


MIXTURE: dict[Callable[[Dialogue, random.Random], Task], float] = {
    answer_question: 6,
    answer_questions: 6,
    repeat_line: 1,
    next_line: 1,
    who_said: 1,
    name_speakers: 0.5,
    name_topic: 0.5,
    find_small_talk: 1,
    restore_blanks: 1,
    restore_line: 0.5,
    find_source: 1,
}
"""Tasks and how often each is drawn, relative to the others."""


def make_example(made: Dialogue, rng: random.Random) -> tuple[str, str]:
    """Return a prompt and its answer for a task drawn from the mixture."""
    task = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0](made, rng)
    lead = fill("[|||Read the following conversation. |About the following conversation: ]", {}, rng)
    return f"{lead}{task.instruction}\n\n{task.text or made.text}\n\n{task.cue}", task.answer
