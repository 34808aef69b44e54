"""Check rows and group them into dialogues with their references.

Rows with the same dialogue become one dialogue with several references, as in DialogSum's test set (500
dialogues x 3). It is summarized once and scored against each reference. Limits count dialogues, not rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lora_hf.arguments import HALVES
from lora_hf.config import DataConfig
from lora_hf.errors import UserError, did_you_mean

Row = dict[str, Any]


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


def check_rows(rows: list[Row], columns: Mapping[str, str], source: str) -> None:
    """Check that every row has text in every column.

    Args:
        rows: a whole file or split, so that row numbers in messages are those of the source.
        columns: by option or field that names a column: the column's name.
        source: name of the rows in messages.

    Raises:
        UserError: no rows, a missing column (with the existing ones), or rows without text.
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
    """Yield the rows; each is checked for text in every column when it is reached.

    Raises:
        UserError: as `check_rows`, except for no rows.
    """
    for number, row in enumerate(rows, start=1):
        if not all(_is_text(row.get(name)) for name in columns.values()):
            check_rows([row], columns, f"{source}, row {number:,}")
        yield row


def group_rows(rows: list[Row], config: DataConfig) -> list[Example]:
    """Group the references of equal dialogues, in the order of their first rows."""
    found: dict[str, tuple[str, list[str]]] = {}
    for number, row in enumerate(rows):
        _, references = found.setdefault(row[config.dialogue_column], (_name(row, config, number), []))
        references.append(row[config.summary_column])
    return [Example(name, dialogue, tuple(refs)) for dialogue, (name, refs) in found.items()]


def dialogues_of(rows: list[Row], config: DataConfig) -> list[Example]:
    """Return one example per row, even for equal dialogues, so that n rows give n summaries."""
    return [
        Example(_name(row, config, number), row[config.dialogue_column], ())
        for number, row in enumerate(rows)
    ]


def _name(row: Row, config: DataConfig, number: int) -> str:
    given = row.get(config.id_column)
    return str(number if given is None or given == "" else given)  # 0 is a valid id


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str) and bool(cell.strip()) and not HALVES.search(cell)
