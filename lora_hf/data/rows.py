"""Read a file of dialogues or of saved predictions into rows, whatever wrote it.

The readers are the standard library's and, for parquet, pyarrow's. pandas and datasets read the same
formats, but guess types ("NA" becomes missing, "007" a number), fill short csv rows in silence and cannot
say which json line is broken; datasets also copies every file into its cache. A cell here is what the file
holds: text, in a csv.
"""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_hf.errors import NOT_JSON, UserError, did_you_mean, first_line

Row = dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """Read a csv, jsonl, json or parquet file; the ending of its name says which.

    Returns:
        One dict a row, by column; at least one row. json rows may differ in their columns.

    Raises:
        UserError: no such file, an unknown ending, not UTF-8, malformed (with the line), or no rows.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file ({', '.join(READERS)})")
    if not path.exists():
        raise UserError(f"{path}: no such file.{_neighbour(path)}")
    if reader is None:
        raise UserError(
            f"{path}: cannot read files ending in {path.suffix!r}; known are {', '.join(READERS)}"
        )
    with _readable(path):
        rows = reader(path)
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def read_utf8(path: Path) -> str:
    """The text of a file, without the mark that Windows puts before it.

    Raises:
        UserError: not UTF-8, or not readable.
    """
    with _readable(path):
        return path.read_text(encoding="utf-8-sig")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _read_csv(path: Path) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long dialogue
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: Excel's files begin with a mark
        reader = csv.DictReader(file, strict=True)
        try:
            names = reader.fieldnames or []
            for row in reader:
                if None in row or None in row.values():  # how DictReader marks a row too long or too short
                    count = f"{'more' if None in row else 'fewer'} cells than the {len(names)} columns"
                    raise UserError(f"{path}, line {reader.line_num}: {count}")
                rows.append(row)
        except csv.Error as error:
            raise UserError(f"{path}, after line {reader.line_num}: not csv: {error}") from error
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: more than one column is called {repeated[0]!r}")
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    return _parse_lines(path, path.read_text(encoding="utf-8-sig"))


def _read_json(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        data = json.loads(text)
    except NOT_JSON as error:
        if (
            getattr(error, "msg", "") == "Extra data"
        ):  # json lines under the name of json, as datasets also takes them
            return _parse_lines(path, text)
        raise UserError(f"{path}{_line_of(error)}: not json: {_why(error)}") from error
    rows = data if isinstance(data, list) else [data]
    for number, row in enumerate(rows, start=1):
        _require_object(row, f"{path}, item {number}")
    return rows


def _parse_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(
        text.split("\n"), start=1
    ):  # not splitlines: U+2028 may stand inside a string
        if line.strip():
            try:
                rows.append(json.loads(line))
            except NOT_JSON as error:
                raise UserError(f"{path}, line {number}: not json: {_why(error)}") from error
            _require_object(rows[-1], f"{path}, line {number}")
    return rows


def _line_of(error: Exception) -> str:
    return f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)


def _require_object(row: object, where: str) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where}: an object {{column: cell, ...}} is needed, this is a {type(row).__name__}")


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.ParquetFile(path).read().to_pylist())
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path} is not a parquet file: {first_line(error)}") from error


def _neighbour(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
