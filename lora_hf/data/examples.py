"""Check rows and group them into dialogues with their references.

Rows with the same dialogue become one dialogue with several references, as in DialogSum's test set (500
dialogues x 3). It is summarized once and scored against each reference. Limits count dialogues, not rows.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lora_hf.arguments import HALVES
from lora_hf.config import DataConfig
from lora_hf.data.columns import DIALOGUE, ID, SUMMARY, Columns, Row
from lora_hf.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One dialogue with its reference summaries; there are none where it is only to be summarized."""

    id: str
    dialogue: str
    references: tuple[str, ...]


def data_fingerprint(*splits: Sequence[Example]) -> str:
    """Return a short hash of the splits' texts, in order. It does not depend on files or formats."""
    digest = sha256()
    for examples in splits:
        digest.update(f"{len(examples)} dialogues".encode())  # marks the boundary between splits
        for example in examples:
            digest.update(repr((example.dialogue, example.references)).encode())
    return digest.hexdigest()[:16]


def check_rows(rows: list[Row], columns: Columns, config: DataConfig, source: str) -> list[Row]:
    """Return the rows; each has text in every column, or is left out if `data.on_bad_row` says so.

    Args:
        rows: a whole file or split, read by its columns, so that row numbers are those of the source.
        columns: names of the columns, for messages.
        config: what to do with rows without text.
        source: name of the rows in messages.

    Raises:
        UserError: no rows, or rows without text.
    """
    if not rows:
        raise UserError(f"{source} has no rows")
    empty = [number for number, row in enumerate(rows, start=1) if not _is_whole(row, columns)]
    if empty and (config.on_bad_row == "error" or len(empty) == len(rows)):
        raise UserError(f"{_bad_rows(empty, len(rows), columns, source)}{SKIP}")
    if empty:
        logger.warning("%s; left out (data.on_bad_row: skip)", _bad_rows(empty, len(rows), columns, source))
        bad = set(empty)
        return [row for number, row in enumerate(rows, start=1) if number not in bad]
    return rows


def check_each(rows: Iterable[Row], columns: Columns, config: DataConfig, source: str) -> Iterator[Row]:
    """Yield the rows; each is checked for text in every column when it is reached.

    Raises:
        UserError: as `check_rows`, except for no rows.
    """
    empty, number = [], 0
    for number, row in enumerate(rows, start=1):
        if _is_whole(row, columns):
            yield row
        elif config.on_bad_row == "error":
            raise UserError(f"{_bad_rows([1], 1, columns, f'{source}, row {number:,}')}{SKIP}")
        else:
            empty.append(number)
    if empty:
        logger.warning("%s; left out (data.on_bad_row: skip)", _bad_rows(empty, number, columns, source))


SKIP = ". Correct them, or set data.on_bad_row: skip to leave them out"


def _bad_rows(empty: list[int], n: int, columns: Columns, source: str) -> str:
    names = " or ".join(dict.fromkeys((columns.dialogue, *columns.references)))
    return (
        f"{source}: {len(empty):,} of {n:,} rows have an empty {names}, or one that is not text; the first "
        f"are rows {empty[:5]}"
    )


def references_of(row: Row) -> list[str]:
    """Return the references of a row that was read by its columns."""
    found = row[SUMMARY]
    return found if isinstance(found, list) else [found]


def one_per_reference(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield each row as often as it has references, with one of them."""
    for row in rows:
        for reference in references_of(row):
            yield row | {SUMMARY: reference}


def group_rows(rows: list[Row]) -> list[Example]:
    """Group the references of equal dialogues, in the order of their first rows."""
    found: dict[str, tuple[str, list[str]]] = {}
    for number, row in enumerate(rows):
        _, references = found.setdefault(row[DIALOGUE], (_name(row, number), []))
        references += references_of(row)
    return [Example(name, dialogue, tuple(refs)) for dialogue, (name, refs) in found.items()]


def dialogues_of(rows: list[Row]) -> list[Example]:
    """Return one example per row, even for equal dialogues, so that n rows give n summaries."""
    return [Example(_name(row, number), row[DIALOGUE], ()) for number, row in enumerate(rows)]


def _name(row: Row, number: int) -> str:
    given = row.get(ID)
    return str(number if given is None or given == "" else given)  # 0 is a valid id


def _is_whole(row: Row, columns: Columns) -> bool:
    if not _is_text(row.get(DIALOGUE)):
        return False
    if not columns.references:
        return True
    found = row.get(SUMMARY)
    return bool(found) and all(map(_is_text, found)) if isinstance(found, list) else _is_text(found)


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str) and bool(cell.strip()) and not HALVES.search(cell)
