"""Rows of any source, checked and gathered into dialogues with their references.

Rows that share a dialogue are one dialogue with several references, as in DialogSum's test set (500
dialogues x 3): it is summarized once and scored against each, and limits count dialogues, not rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lora_hf.config import DataConfig
from lora_hf.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Example:
    """One dialogue; `references` holds one summary in training data and one or more in test data."""

    id: str
    dialogue: str
    references: tuple[str, ...]


def data_fingerprint(examples: Iterable[Example]) -> str:
    """A short hash of the texts, in order: the same data from another file or format agrees."""
    digest = sha256()
    for example in examples:
        digest.update(repr((example.dialogue, example.references)).encode())
    return digest.hexdigest()[:16]


def group_rows(
    rows: list[dict[str, Any]], config: DataConfig, source: str, with_references: bool
) -> list[Example]:
    """Check every row, and gather the references of equal dialogues in the order of their first rows."""
    if not rows:
        raise UserError(f"{source} has no rows")
    columns = [config.dialogue_column] + ([config.summary_column] if with_references else [])
    for field, column in zip(("dialogue_column", "summary_column"), columns, strict=False):
        if column not in rows[0]:
            present = sorted(rows[0])
            hint = did_you_mean(column, present)
            raise UserError(f"data.{field}={column!r}: {source} has the columns {present}.{hint}")
    empty = [i for i, row in enumerate(rows) if not all(_is_text(row.get(c)) for c in columns)]
    if empty:
        raise UserError(
            f"{source}: {len(empty)} of {len(rows)} rows have an empty {' or '.join(columns)}, or one that "
            f"is not text; the first are rows {[i + 1 for i in empty[:5]]}"
        )
    found: dict[str, tuple[str, list[str]]] = {}
    for number, row in enumerate(rows):
        name = str(row.get(config.id_column) or number)
        _, references = found.setdefault(row[config.dialogue_column], (name, []))
        if with_references:
            references.append(row[config.summary_column])
    return [Example(name, dialogue, tuple(refs)) for dialogue, (name, refs) in found.items()]


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str) and bool(cell.strip())
