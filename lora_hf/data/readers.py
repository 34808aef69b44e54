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
PARQUET_ROWS = 1024
"""That are decoded at once."""


def read_rows(path: str | Path) -> list[Row]:
    """Read a csv, jsonl, json or parquet file; the ending of its name says which.

    Returns:
        One dict a row, by column; at least one row. json rows may differ in their columns.

    Raises:
        UserError: no such file, an unknown ending, not UTF-8, malformed (with the line), or no rows.
    """
    rows = list(iterate_rows(path))
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def iterate_rows(path: str | Path) -> Iterator[Row]:
    """`read_rows`, a row at a time, of which no more is held than the file's format asks for: of json all.

    Raises:
        UserError: as `read_rows`, but for no rows; what is malformed where it is come to.
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
        yield from reader(path)


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


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long dialogue
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: Excel's files begin with a mark
        reader = csv.DictReader(file, strict=True)
        try:
            names = reader.fieldnames or []
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise UserError(f"{path}: more than one column is called {repeated[0]!r}")
            for row in reader:
                if None in row or None in row.values():  # how DictReader marks a row too long or too short
                    count = f"{'more' if None in row else 'fewer'} cells than the {len(names)} columns"
                    raise UserError(f"{path}, line {reader.line_num}: {count}")
                yield row
        except csv.Error as error:
            raise UserError(f"{path}, after line {reader.line_num}: not csv: {error}") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except NOT_JSON as error:
                raise UserError(f"{path}, line {number}: not json: {_why(error)}") from error
            _require_object(row, f"{path}, line {number}")
            yield row


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, and an error that counts the bytes from the file's beginning.

    Not `splitlines`: U+2028 may stand inside a string.
    """
    begun = 0
    with path.open("rb") as file:
        for line in file:
            try:
                yield line.decode("utf-8-sig" if begun == 0 else "utf-8")
            except UnicodeDecodeError as error:
                error.start += begun
                raise
            begun += len(line)


def _read_json(path: Path) -> Iterator[Row]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except NOT_JSON as error:
        if (
            getattr(error, "msg", "") == "Extra data"
        ):  # json lines under the name of json, as datasets also takes them
            yield from _read_jsonl(path)
            return
        raise UserError(f"{path}{_line_of(error)}: not json: {_why(error)}") from error
    rows = data if isinstance(data, list) else [data]
    for number, row in enumerate(rows, start=1):
        _require_object(row, f"{path}, item {number}")
        yield row


def _line_of(error: Exception) -> str:
    return f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)


def _require_object(row: object, where: str) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where}: an object {{column: cell, ...}} is needed, this is a {type(row).__name__}")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path} is not a parquet file: {first_line(error)}") from error


def _neighbour(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
