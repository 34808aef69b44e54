"""Check rows and group them into dialogues with their references.

Rows with the same dialogue become one dialogue with several references, as in DialogSum's test set (500
dialogues x 3). It is summarized once and scored against each reference. Limits count dialogues, not rows.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lora_hf.arguments import HALVES, is_blank
from lora_hf.config import DataConfig
from lora_hf.data.columns import DIALOGUE, ID, MESSAGES, SUMMARY, Columns, Row, null_in
from lora_hf.data.sources import Part
from lora_hf.errors import UserError, few

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


def check_rows(rows: list[Row], columns: Columns, config: DataConfig, part: Part) -> list[Row]:
    """Return the rows; each has text in every column, or is left out if `data.on_bad_row` says so.

    Args:
        rows: a whole file or split, read by its columns, so that row numbers are those of the source.
        columns: names of the columns, for messages.
        config: what to do with rows without text.
        part: where the rows come from, for messages.

    Raises:
        UserError: no rows, or rows without text.
    """
    if not rows:
        raise UserError(f"{part.name} has no rows; {_more_rows(part)}")
    for number, row in enumerate(rows):
        _number(row, number)
    bad = [number for number, row in enumerate(rows, start=1) if fault_of(row, columns)]
    if not bad:
        return rows
    text = _bad_rows(bad, len(rows), columns, part, fault_of(rows[bad[0] - 1], columns))
    if config.on_bad_row == "error" or len(bad) == len(rows):
        raise UserError(f"{text}{SKIP if len(bad) < len(rows) else '. Correct them'}")
    logger.warning("%s; left out (data.on_bad_row: skip)", text)
    left_out = set(bad)
    return [row for number, row in enumerate(rows, start=1) if number not in left_out]


def _more_rows(part: Part) -> str:
    if part.files and part.origin not in (None, "train"):
        names = few(file.name for file in part.files)
        return f"remove {names}, and a share of train is taken as {part.origin}"
    return "add rows with texts to it, or give other data"


def check_each(rows: Iterable[Row], columns: Columns, config: DataConfig, part: Part) -> Iterator[Row]:
    """Yield the rows; each is checked for text in every column when it is reached.

    Raises:
        UserError: as `check_rows`, except for no rows.
    """
    bad, number, first = [], 0, ""
    for number, row in enumerate(rows, start=1):
        if not (fault := fault_of(row, columns)):
            yield _number(row, number - 1)
        elif config.on_bad_row == "error":
            at = f"{part.name}, row {number:,}"
            raise UserError(f"{_bad_rows([number], 1, columns, part, fault, at)}{SKIP}")
        else:
            bad.append(number)
            first = first or fault
    if bad:
        text = _bad_rows(bad, number, columns, part, first)
        logger.warning("%s; left out (data.on_bad_row: skip)", text)


class RowNumber(int):
    """The number of a row in its source, from 0: the id of a row that has none."""


def _number(row: Row, number: int) -> Row:
    """Give a row without an id its number."""
    if row.get(ID) in (None, ""):
        row[ID] = RowNumber(number)
    return row


DATES = (
    "`datasets` reads texts of json that look like dates as dates: to have them as they are, name the file "
    "itself, data.dataset_name: hf://datasets/USER/NAME/FILE"
)
SKIP = ". Correct them, or set data.on_bad_row: skip to leave them out"


def _bad_rows(bad: list[int], n: int, columns: Columns, part: Part, fault: str, at: str = "") -> str:
    names = " or ".join(dict.fromkeys((columns.dialogue, *columns.references))).replace("\n", "\\n")
    place = part.place(bad[0])
    if not part.files and "of type date" in fault:  # date or datetime
        fault += f". {DATES}"
    first = f" ({place}: {fault})" if place else f" ({fault})"
    listed = "" if at else f"; the first are rows {bad[:5]}"
    return (
        f"{at or part.name}: {len(bad):,} of {n:,} rows have an empty {names[:120]}, or one that is not text"
        f"{listed}{first}"
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
    for row, name in zip(rows, _names(rows), strict=True):
        _, references = found.setdefault(row[DIALOGUE], (name, []))
        references += references_of(row)
    return [Example(name, dialogue, tuple(refs)) for dialogue, (name, refs) in found.items()]


def dialogues_of(rows: list[Row]) -> list[Example]:
    """Return one example per row, even for equal dialogues, so that n rows give n summaries."""
    return [Example(name, row[DIALOGUE], ()) for row, name in zip(rows, _names(rows), strict=True)]


def _names(rows: list[Row]) -> list[str]:
    """Return the ids of checked rows; the number of a row without one gives way to an equal id of another."""
    given = {str(row[ID]) for row in rows if not isinstance(row[ID], RowNumber)}

    def name(row: Row) -> str:
        found = str(row[ID])
        while isinstance(row[ID], RowNumber) and found in given:
            found = f"row {found}"
        return found

    return [name(row) for row in rows]


def fault_of(row: Row, columns: Columns) -> str:
    """Return what is wrong with a row that was read by its columns; an empty text if nothing is."""
    said = row.get(DIALOGUE)
    fault = (null_in(said, columns.turn_template) if isinstance(said, list) else "") or _not_text(said)
    if fault:
        return f"{columns.bad_column(row)} {fault}"
    if not columns.references:
        return ""
    found = row.get(SUMMARY)
    if found is None and columns.is_found and columns.dialogue == MESSAGES:
        return f"{MESSAGES} does not end with a message whose role is assistant"
    faults = list(map(_not_text, found)) if isinstance(found, list) and found else [_not_text(found)]
    return next((f"{', '.join(columns.references[:3])} {fault}" for fault in faults if fault), "")


def _not_text(cell: Any) -> str:
    """Return what a cell is in the place of text; an empty text if it is text."""
    if isinstance(cell, str):
        if is_blank(cell):
            return "is empty"
        return "has half of a character (a surrogate)" if HALVES.search(cell) else ""
    if cell is None or cell == []:
        return "is missing" if cell is None else "is an empty list"
    if isinstance(cell, list) and isinstance(cell[0], dict) and cell[0]:
        keys = [str(key)[:20] for key in cell[0]][:6]
        template = ": ".join(f"{{{key}}}" for key in keys[:2])
        return f"has turns with the keys {', '.join(keys)}: set data.turn_template, such as {template!r}"
    kinds = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}
    if (kind := kinds.get(type(cell))) is None:  # of parquet, arrow or Python
        kind = f"of type {type(cell).__name__}; convert the column to text"
    return f"is {str(cell)[:40]}, {kind}"
