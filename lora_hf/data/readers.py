"""Read a file of dialogues or of saved predictions into rows.

The readers are those of the standard library and, for parquet, of pyarrow. pandas and datasets read the same
formats, but guess types ("NA" becomes missing, "007" a number), silently fill short csv rows, and do not say
which json line is broken; datasets also copies every file into its cache. Here, csv cells stay text.
"""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_hf.errors import NOT_JSON, UserError, first_line, path_hint
from lora_hf.files import refuse_git_lfs_pointer

Row = dict[str, Any]
PARQUET_ROWS = 1024
"""Rows decoded at once."""
JSON_TYPES: dict[type, str] = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
"""What messages call a value of a JSON file that is not an object."""


def read_rows(path: str | Path) -> list[Row]:
    """Read a csv, jsonl, json or parquet file; the file extension decides which.

    Returns:
        One dict per row, by column; at least one row. json rows may differ in their columns.

    Raises:
        UserError: no such file, an unknown extension, not UTF-8, malformed (with the line), or no rows.
    """
    rows = list(iterate_rows(path))
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def iterate_rows(path: str | Path) -> Iterator[Row]:
    """Yield the rows of `read_rows` one by one. Only json files are read into memory as a whole.

    Raises:
        UserError: as `read_rows`, except for no rows; malformed rows raise when they are reached.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file ({', '.join(READERS)})")
    if not path.exists():
        hint = path_hint(str(path))
        if not hint and reader is None and " " in path.name:
            hint = " Give a file; one dialogue by itself may be in a .txt file."
        raise UserError(f"{path}: no such file.{hint}")
    if reader is None:
        raise UserError(
            f"{path}: cannot read files ending in {path.suffix!r}; supported are {', '.join(READERS)}"
        )
    with _readable(path):
        refuse_git_lfs_pointer(path)
        yield from reader(path)


def read_utf8(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

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
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: Excel writes a byte order mark
        reader = csv.DictReader(file, strict=True)
        try:
            names = reader.fieldnames or []
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise UserError(f"{path}: more than one column is named {repeated[0]!r}")
            for row in reader:
                if None in row or None in row.values():  # DictReader marks long and short rows so
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
    """Yield the lines of a UTF-8 file. Errors give the byte offset in the file.

    `splitlines` would also split at U+2028, which may occur inside a string.
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
        ):  # json lines in a .json file, which datasets also accepts
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
        found = JSON_TYPES.get(type(row), "a number")
        raise UserError(f"{where}: must be an object such as {{column: text, ...}}, and is {found}")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path} is not a parquet file: {first_line(error)}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
