"""Make several rows of one that holds a list: `explode`, as pandas, Polars and Spark call it.

QMSum has a meeting and a list of questions per row, SQuAD as its authors publish it paragraphs with lists of
questions. Each object of the list becomes a row, under the list's own name, beside the other columns.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lora_hf.data.columns import value_in
from lora_hf.errors import UserError, did_you_mean, in_words, listed

Row = dict[str, Any]


def exploded(
    rows: Iterator[tuple[int | None, Row]], column: str, source: str
) -> Iterator[tuple[int | None, Row]]:
    """Yield a row for each item of the list in a column; a row with an empty list or null gives none.

    Args:
        rows: rows with the line that each begins in.
        column: `a`, or `a.b` for the lists b in the object or the list of objects a.
        source: what messages call the rows.

    Raises:
        UserError: no row has the column, or a row has something else in it.
    """
    columns: dict[str, None] = {}
    is_there = False
    for line, row in rows:
        if (found := _items(row, column)) is None:
            columns |= dict.fromkeys(row)
            continue
        is_there = True
        at = source if line is None else f"{source}, line {line}"
        yield from ((line, one) for one in _rows(row, found, column, at))
    if columns and not is_there:
        raise UserError(
            f"data.explode={column!r}: {source} has the columns {in_words(columns)}."
            f"{did_you_mean(column, columns)}"
        )


def _split(row: Mapping[str, Any], column: str) -> tuple[str, str]:
    name, _, rest = (column, "", "") if column in row else column.partition(".")
    return name, rest


def _items(row: Mapping[str, Any], column: str) -> Any:
    """Return what is in the first column of a path, or None where the row does not have it."""
    name, _ = _split(row, column)
    return [] if name in row and row[name] is None else row.get(name)


def _rows(row: Row, found: Any, column: str, at: str) -> Iterator[Row]:
    name, rest = _split(row, column)
    found = value_in(found)  # a cell of csv
    if isinstance(found, Mapping):
        found = _by_object(found, rest) or ([found] if rest else found)
    if not isinstance(found, list):
        raise UserError(
            f"data.explode={column!r}: {at}: {name!r} is not a list of objects: {str(found)[:40]!r}"
        )
    for item in found:
        if item is None:
            continue
        if not rest:
            yield row | {name: item}
            continue
        if not isinstance(item, Mapping) or _items(item, rest) is None:
            held = f"keys {listed(list(item))}" if isinstance(item, Mapping) else repr(item)[:40]
            raise UserError(f"data.explode={column!r}: {at}: an item of {name!r} has no {rest!r}: {held}")
        yield from (row | {name: inner} for inner in _rows(dict(item), _items(item, rest), rest, at))


def _by_object(lists: Mapping[str, Any], rest: str) -> list[Row]:
    """Return the objects of an object of lists of equal length, as `datasets` stores a list of objects."""
    values = list(lists.values())
    if not all(isinstance(value, list) for value in values) or len({len(value) for value in values}) != 1:
        return []
    if rest and not all(isinstance(one, list) for one in lists.get(_split(lists, rest)[0], [None])):
        return []
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*values, strict=True)]
