"""Instruction tasks about dialogues, mixed as in FLAN; summarization is left out.

Each task is a function from a dialogue to an instruction, a cue and an answer. Prompts have the form of the
prompt used in fine-tuning, so that only the instruction distinguishes the tasks.
"""

import random
import re
from collections.abc import Callable
from typing import NamedTuple

from scripts.tools.generator.dialogue import Dialogue, Line
from scripts.tools.generator.template import fill


class Task(NamedTuple):
    """An instruction, the cue before the answer, the answer, and the text if it is not the dialogue's."""

    instruction: str
    cue: str
    answer: str
    text: str | None = None


ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def who_said(dialogue: Dialogue, rng: random.Random) -> Task:
    """Name the speaker of a quoted line."""
    line = rng.choice(dialogue.lines)
    ask = fill("[Who said|Who says|Name the speaker of]", {}, rng)
    return Task(f'{ask} "{line.text}"', "Name: ", line.speaker)


def repeat_line(dialogue: Dialogue, rng: random.Random) -> Task:
    """Repeat the first, the last or the n-th line."""
    place = rng.randrange(-1, min(len(dialogue.lines), len(ORDINALS)))
    ordinal = "last" if place < 0 else ORDINALS[place]
    ask = fill(f"[Repeat|Copy|Write down] the {ordinal} line of the [conversation|dialogue].", {}, rng)
    return Task(ask, "Line: ", str(dialogue.lines[place]))


def next_line(dialogue: Dialogue, rng: random.Random) -> Task:
    """Copy the line that follows a quoted one."""
    place = rng.randrange(len(dialogue.lines) - 1)
    ask = fill("[What comes after|What is the answer to|Which line follows]", {}, rng)
    return Task(f'{ask} "{dialogue.lines[place].text}"', "Line: ", str(dialogue.lines[place + 1]))


def name_speakers(dialogue: Dialogue, rng: random.Random) -> Task:
    """Name both speakers in order of appearance."""
    ask = fill("[Who is talking?|Name the speakers.|Who takes part in the conversation?]", {}, rng)
    return Task(ask, "Names: ", " and ".join(dict.fromkeys(line.speaker for line in dialogue.lines)))


def name_topic(dialogue: Dialogue, rng: random.Random) -> Task:
    """Name the topic of the dialogue."""
    ask = fill("[What kind of conversation is this?|What is the topic of it?|Name the topic.]", {}, rng)
    return Task(ask, "Topic: ", dialogue.topic)


def find_small_talk(dialogue: Dialogue, rng: random.Random) -> Task:
    """Copy the first line that is small talk, or the first that is not."""
    wanted = rng.random() < 0.5
    line = next((line for line in dialogue.lines if line.is_small_talk == wanted), None)
    kind = "[is small talk|does not matter]" if wanted else "[is not small talk|matters]"
    ask = fill(f"Which line {kind} first?", {}, rng)
    return Task(ask, "Line: ", str(line) if line else "none")


def restore_blanks(dialogue: Dialogue, rng: random.Random) -> Task:
    """Give the words that are missing from a line."""
    lines = list(map(str, dialogue.lines))
    place = rng.randrange(len(lines))
    words = lines[place].split(" ")
    start = rng.randrange(len(words))
    end = min(len(words), start + rng.randint(1, 3))
    lines[place] = " ".join([*words[:start], "___", *words[end:]])
    ask = fill("[Restore the blanks.|Fill the gap.|Which words are missing?]", {}, rng)
    return Task(ask, "Words: ", " ".join(words[start:end]), "\n".join(lines))


def restore_line(dialogue: Dialogue, rng: random.Random) -> Task:
    """Complete a line, given its beginning."""
    line = str(rng.choice(dialogue.lines))
    cut = line.find(" ", len(line) // 3)
    if cut < 0:
        return repeat_line(dialogue, rng)
    ask = fill("[Complete|Continue|Finish] the line", {}, rng)
    return Task(f'{ask} "{line[:cut]}"', "Line: ", line)


def answer_question(dialogue: Dialogue, rng: random.Random) -> Task:
    """Answer one question about the dialogue."""
    asked = rng.choice(dialogue.questions)
    ask = fill(rng.choice(asked.asks), dialogue.facts, rng)
    return Task(ask, "Answer: ", asked.answer.format_map(dialogue.facts))


def answer_questions(dialogue: Dialogue, rng: random.Random) -> Task:
    """Answer two or three questions at once."""
    asked = rng.sample(dialogue.questions, rng.randint(2, min(3, len(dialogue.questions))))
    ask = " ".join(fill(rng.choice(one.asks), dialogue.facts, rng) for one in asked)
    return Task(ask, "Answers: ", " ".join(one.answer.format_map(dialogue.facts) for one in asked))


def find_source(dialogue: Dialogue, rng: random.Random) -> Task:
    """Copy the line that states a fact."""
    lines = [line for line in dialogue.lines if not line.is_small_talk]
    found = [(value, line) for value in dialogue.facts.values() for line in lines if _mentions(line, value)]
    if not found:
        return repeat_line(dialogue, rng)
    value, _ = rng.choice(found)
    line = next(line for line in lines if _mentions(line, value))
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
"""Relative frequency of each task."""


def make_example(dialogue: Dialogue, rng: random.Random) -> tuple[str, str]:
    """Return a prompt and its answer for a task drawn from the mixture."""
    task = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0](dialogue, rng)
    lead = fill("[|||Read the following conversation. |About the following conversation: ]", {}, rng)
    return f"{lead}{task.instruction}\n\n{task.text or dialogue.text}\n\n{task.cue}", task.answer
