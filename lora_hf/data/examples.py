"""Rows of any source, checked and gathered into dialogues with their references.

Rows that share a dialogue are one dialogue with several references, as in DialogSum's test set (500
dialogues x 3): it is summarized once and scored against each, and limits count dialogues, not rows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lora_hf.config import DataConfig
from lora_hf.errors import UserError, did_you_mean

Row = dict[str, Any]
HALVES = re.compile("[\ud800-\udfff]")
"""JSON can hold halves of characters, which are no text: no tokenizer and no file takes them."""


@dataclass(frozen=True)
class Example:
    """One dialogue; `references` holds one summary or more, or none in what is only to be summarized."""

    id: str
    dialogue: str
    references: tuple[str, ...]


def data_fingerprint(*splits: Sequence[Example]) -> str:
    """A short hash of the splits' texts, in order: the same data from another file or format agrees."""
    digest = sha256()
    for examples in splits:
        digest.update(f"{len(examples)} dialogues".encode())  # where one split ends and the next begins
        for example in examples:
            digest.update(repr((example.dialogue, example.references)).encode())
    return digest.hexdigest()[:16]


def check_rows(rows: list[Row], columns: Mapping[str, str], source: str) -> None:
    """See that every row has text in every column.

    Args:
        rows: of a whole file or split, so that a row's number is the one its owner counts.
        columns: the option that names a column, as its owner writes it, to the column's name.
        source: what the rows are called in a message.

    Raises:
        UserError: no rows, no such column (with those there are), or rows without text (with their numbers).
    """
    if not rows:
        raise UserError(f"{source} has no rows")
    for option, column in columns.items():
        if column not in rows[0]:
            present = sorted(rows[0])
            hint = did_you_mean(column, present)
            raise UserError(f"{option}={column!r}: {source} has the columns {present}.{hint}")
    names = list(columns.values())
    empty = [i for i, row in enumerate(rows) if not all(_is_text(row.get(name)) for name in names)]
    if empty:
        raise UserError(
            f"{source}: {len(empty):,} of {len(rows):,} rows have an empty {' or '.join(names)}, or one that "
            f"is not text; the first are rows {[i + 1 for i in empty[:5]]}"
        )


def check_each(rows: Iterable[Row], columns: Mapping[str, str], source: str) -> Iterator[Row]:
    """The rows, each of them seen to have text in every column when it is come to.

    Raises:
        UserError: as `check_rows`, but for no rows.
    """
    for number, row in enumerate(rows, start=1):
        if not all(_is_text(row.get(name)) for name in columns.values()):
            check_rows([row], columns, f"{source}, row {number:,}")
        yield row


def group_rows(rows: list[Row], config: DataConfig) -> list[Example]:
    """Gather the references of equal dialogues, in the order of their first rows."""
    found: dict[str, tuple[str, list[str]]] = {}
    for number, row in enumerate(rows):
        _, references = found.setdefault(row[config.dialogue_column], (_name(row, config, number), []))
        references.append(row[config.summary_column])
    return [Example(name, dialogue, tuple(refs)) for dialogue, (name, refs) in found.items()]


def dialogues_of(rows: list[Row], config: DataConfig) -> list[Example]:
    """One example a row, also where dialogues are equal: whoever gave n rows gets n summaries."""
    return [
        Example(_name(row, config, number), row[config.dialogue_column], ())
        for number, row in enumerate(rows)
    ]


def _name(row: Row, config: DataConfig, number: int) -> str:
    given = row.get(config.id_column)
    return str(number if given is None or given == "" else given)  # an id of 0 is an id


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str) and bool(cell.strip()) and not HALVES.search(cell)
