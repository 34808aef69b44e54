"""Divide texts that are too long for a model into parts, at the speakers' turns.

A text is divided where a turn begins, and within a turn only if the turn alone is too long: then at line
ends, at sentence ends, between words, and at last between characters. There are as few parts as possible, of
similar length: a last part of one turn would get a summary of its own.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from lora_hf.arguments import shown
from lora_hf.config import DataConfig
from lora_hf.data.prompts import unix_lines
from lora_hf.data.tokenize import ABSURD, source_lengths
from lora_hf.errors import UserError, did_you_mean

Long = Literal["cut", "split"]
"""What is done with texts that are too long: they lose their end, or are summarized in parts."""
LONG: tuple[Long, ...] = get_args(Long)

SPEAKER = re.compile(r"^[ \t]*(?:\S+[ \t]){0,3}?\S{0,40}(?::(?=\s|$)|：)", re.MULTILINE)
"""The beginning of a turn: up to four words with a colon, such as `Anna:` or `[10:30] Anna Smith:`."""
LINE = re.compile(r"\n\s*")
SENTENCE = re.compile(
    r"(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bProf)[.!?…][\"'”’)\]]*\s+|[。！？][”’」』）]*"
)
WORD = re.compile(r"\s+")


def check_long(value: Any, name: str = "long") -> Long:
    """Return the value, which must be one of `LONG`.

    Args:
        value: as the user gave it.
        name: what the user calls it.

    Raises:
        UserError: it is none of them.
    """
    if value not in LONG:
        hint = did_you_mean(value, LONG) if isinstance(value, str) else ""
        raise UserError(f"{name}={shown(value)} must be one of {', '.join(LONG)}.{hint}")
    return cast(Long, value)


@dataclass(frozen=True)
class Division:
    """How many texts were divided, and the price."""

    n: int
    """Texts."""
    divided: int
    """Those that were divided."""
    parts: int
    """Parts of those."""
    max_source_length: int

    @classmethod
    def of(cls, texts: Sequence[Sequence[Any]], max_source_length: int) -> "Division":
        """Count the result of `divided`, or what is made of each part."""
        several = [len(parts) for parts in texts if len(parts) > 1]
        return cls(len(texts), len(several), sum(several), max_source_length)

    def __str__(self) -> str:
        total = self.n - self.divided + self.parts
        return (
            f"{self.divided:,} of {self.n:,} texts are longer than {self.max_source_length} tokens, prompt "
            f"included, and are processed in {self.parts:,} parts: {total:,} outputs are generated instead "
            f"of {self.n:,}, and those of a text's parts are joined"
        )


def divided(texts: Sequence[str], tokenizer: Any, data: DataConfig) -> list[list[str]]:
    """Return the parts of each text, each of which fits into `max_source_length` with the prompt.

    Args:
        texts: any number.
        tokenizer: the model's.
        data: its `prompt`, `max_source_length` and languages are used.

    Returns:
        One list per text; a text that fits is its only part, with `\n` as its line ends. Parts lose the
        spaces around them.
    """
    texts = list(map(unix_lines, texts))
    limit = data.max_source_length

    def measure(texts: Sequence[str]) -> list[int]:
        """Return the numbers of tokens in the prompt; a huge text is not tokenized, which takes gigabytes."""
        huge = max(ABSURD, 8 * limit)
        lengths = iter(source_lengths([text for text in texts if len(text) <= huge], tokenizer, data))
        return [limit + 1 if len(text) > huge else next(lengths) for text in texts]

    (around,) = measure([""])
    if around >= limit:  # the prompt alone is too long, which is an error where it is tokenized
        return [[text] for text in texts]
    return [
        [text] if length <= limit else _parts(text, measure, limit, around)
        for text, length in zip(texts, measure(texts), strict=True)
    ]


Measure = Callable[[Sequence[str]], list[int]]


def _parts(text: str, measure: Measure, limit: int, around: int) -> list[str]:
    units = _units([text], measure, limit)
    costs = [max(1, length - around) for length in measure(units)]
    room = limit - around
    while True:
        parts = ["".join(units[start:end]).strip() for start, end in _balanced(costs, room)]
        over = max(measure(parts)) - limit
        if over <= 0 or len(parts) == len(units):
            return [part for part in parts if part]
        room -= over  # tokens of joined units are not always those of the units


def _units(texts: Sequence[str], measure: Measure, limit: int, level: int = 0) -> list[str]:
    """Divide the texts, at a deeper level each that does not fit; joined, the result is the texts."""
    found = []
    for text, length in zip(texts, measure(texts), strict=True):
        if length <= limit or len(text) < 2:
            found.append(text)
        else:
            deeper = min(level + 1, len(LEVELS))
            found += _units(
                LEVELS[level](text) if level < len(LEVELS) else _halves(text), measure, limit, deeper
            )
    return found


def _turns(text: str) -> list[str]:
    """Divide a text before each speaker; before each line, if none is named."""
    starts = [found.start() for found in SPEAKER.finditer(text)]
    return _pieces(text, starts) if starts else _lines(text)


def _lines(text: str) -> list[str]:
    return _pieces(text, [found.end() for found in LINE.finditer(text)])


def _sentences(text: str) -> list[str]:
    return _pieces(text, [found.end() for found in SENTENCE.finditer(text)])


def _words(text: str) -> list[str]:
    return _pieces(text, [found.end() for found in WORD.finditer(text)])


def _halves(text: str) -> list[str]:
    return _pieces(text, [len(text) // 2])


def _pieces(text: str, starts: list[int]) -> list[str]:
    """Divide a text at these places; no piece is empty."""
    places = sorted({0, *starts, len(text)})
    return [text[start:end] for start, end in zip(places, places[1:], strict=False)]


LEVELS = (_turns, _lines, _sentences, _words)


def _balanced(costs: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Group neighbors into as few groups of at most `room` as possible, the largest as small as possible.

    Returns:
        Start and end of each group. What is larger than `room` by itself is a group.
    """
    fewest = sum(1 for _ in _groups(costs, room))
    low, high = min(room, max(1, sum(costs) // fewest)), room
    while low < high:
        middle = (low + high) // 2
        if sum(1 for _ in _groups(costs, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return list(_groups(costs, low))


def _groups(costs: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Fill one group after another."""
    start, filled = 0, 0
    for at, cost in enumerate(costs):
        if at > start and filled + cost > room:
            yield start, at
            start, filled = at, 0
        filled += cost
    yield start, len(costs)
