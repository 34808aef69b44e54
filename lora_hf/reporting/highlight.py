"""Marking of the words that a summary shares with its references, by lower-case stems as in ROUGE-1."""

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

_WORD = re.compile(r"[A-Za-z0-9]+")
_SHORT = 3
"""rouge_score stems words that are longer than this."""


def marked(text: str, references: Sequence[str]) -> str:
    """Return the text as escaped HTML, with the words of any reference in `<mark>`."""
    known = {_stem(word) for reference in references for word in _WORD.findall(reference)}
    parts, end = [], 0
    for match in _WORD.finditer(text):
        parts.append(escape(text[end : match.start()]))
        word = escape(match.group())
        parts.append(f"<mark>{word}</mark>" if _stem(match.group()) in known else word)
        end = match.end()
    # one mark for adjacent words
    return re.sub(r"</mark>(\s+)<mark>", r"\1", "".join([*parts, escape(text[end:])]))


@cache
def _stem(word: str) -> str:
    lower = word.lower()
    stem: str = _stemmer().stem(lower) if len(lower) > _SHORT else lower
    return stem


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # here: importing it takes a second

    return PorterStemmer()
