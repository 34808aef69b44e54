"""Check the arguments of the public functions, so that a wrong type ends in a `UserError` that names it."""

import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from lora_hf.errors import UserError

HALVES = re.compile("[\ud800-\udfff]")
"""Lone surrogates, which JSON can hold, and neither tokenizers nor UTF-8 files accept."""
BLANK = re.compile(r"[\s\u200b\ufeff]*")
"""What has no text: whitespace, zero-width spaces and byte order marks."""
MAX_MERGED = 4
"""Adapters that `engine="ctranslate2"` keeps merged by default; commands show it without loading torch."""


def check_text(name: str, value: Any) -> str:
    """Return the value, which must be a text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise UserError(f"{name}={shown(value)} is not text: pass a str")
    if half := HALVES.search(value):
        raise UserError(
            f"{name}={shown(value)} is not text: character {half.start() + 1} is half of a surrogate pair; "
            "remove it"
        )
    return value


def is_blank(text: str) -> bool:
    """Return whether a text has nothing to read: it is empty, or all of it is invisible."""
    return BLANK.fullmatch(text) is not None


def check_not_blank(name: str, value: Any) -> str:
    """Return the value, which must be a text with something to read."""
    if is_blank(check_text(name, value)):
        raise UserError(f"{name}={shown(value)} is empty: pass a text, or leave it out")
    return str(value)


def check_texts(name: str, values: Any) -> list[str]:
    """Return the texts of any ordered collection; one text by itself is refused."""
    return [check_text(f"{name}[{i}]", value) for i, value in enumerate(check_list(name, values))]


def check_list(name: str, values: Any) -> list[Any]:
    """Return the items of any ordered collection."""
    if isinstance(values, str):
        raise UserError(f"{name}={shown(values)} is one text, not a list of texts: pass [{shown(values)}]")
    if not isinstance(values, Iterable) or isinstance(values, bytes | Mapping | Set):
        raise UserError(f"{name}={shown(values)} is not a list of texts: pass a list of str")
    return list(values)


def check_place(name: str, value: Any, others: str = "") -> str:
    """Return a path or a name as text; `others` are the further types that the argument takes."""
    if not isinstance(value, str | Path) or not str(value):
        raise UserError(
            f"{name}={shown(value)} is neither a path nor a name: pass a non-empty str or a Path{others}"
        )
    return check_text(name, str(value))
