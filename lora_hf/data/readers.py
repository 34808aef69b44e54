"""Read a file of dialogues or of saved predictions into rows.

The readers are those of the standard library and, for parquet and arrow, of pyarrow. pandas and datasets read
the same formats, but guess types ("NA" becomes missing, "007" a number), silently fill short csv rows, and do
not say which json line is broken; datasets also copies every file into its cache. Here, csv cells stay text.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_hf.data.opened import (
    COMPRESSIONS,
    DELIMITERS,
    delimiter_of,
    endings,
    is_utf_16,
    open_bytes,
    open_text,
    readable,
)
from lora_hf.errors import NOT_JSON, UserError, first_line, path_hint

Row = dict[str, Any]
PARQUET_ROWS = 1024
"""Rows decoded at once."""
JSON_TYPES: dict[type, str] = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
"""What messages call a value of a JSON file that is not an object."""


def read_rows(path: str | Path) -> list[Row]:
    """Read a csv, tsv, jsonl, json, parquet or arrow file; the file extension decides which.

    Texts may be compressed (gz, bz2, xz, zst) and in UTF-8, or in UTF-16 with a byte order mark. The columns
    of csv are separated by what separates the header: a comma, or else a tab, semicolon or vertical bar.

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
    form, compression = endings(path)
    reader = None if compression and form in BINARY else READERS.get(form)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file ({', '.join(READERS)})")
    if not path.exists():
        hint = path_hint(str(path))
        if not hint and reader is None and " " in path.name:
            hint = " Give a file; one dialogue by itself may be in a .txt file."
        raise UserError(f"{path}: no such file.{hint}")
    if reader is None:
        remedy = REMEDIES.get(form, "")
        raise UserError(
            f"{path}: cannot read files ending in {form + compression!r}; supported are "
            f"{', '.join(READERS)}, and texts with {', '.join(COMPRESSIONS)} after it{remedy}"
        )
    with readable(path):
        yield from reader(path)


def read_utf8(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        UserError: not UTF-8, or not readable.
    """
    with readable(path), open_text(path) as file:
        return file.read()


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long dialogue
    delimiter = delimiter_of(path)
    with open_text(path) as file:
        reader = csv.DictReader(file, strict=True, delimiter=delimiter)
        try:
            names = reader.fieldnames or []
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise UserError(f"{path}: more than one column is named {repeated[0]!r}")
            for row in reader:
                if None in row or None in row.values():  # DictReader marks long and short rows so
                    count = f"{'more' if None in row else 'fewer'} cells than the {len(names)} columns"
                    mark = "" if delimiter == "," else f" (separated by {DELIMITERS[delimiter]})"
                    raise UserError(f"{path}, line {reader.line_num}: {count}{mark}")
                yield row
        except csv.Error as error:
            remedy = BACKSLASHES if _has_backslash_quotes(path) else ""
            raise UserError(f"{path}, after line {reader.line_num}: not csv: {error}{remedy}") from error


BACKSLASHES = '; quotes inside cells are written \\" there: write them twice (""), or save the rows as jsonl'


def _has_backslash_quotes(path: Path) -> bool:
    with open_bytes(path) as stream:
        return b'\\"' in stream.read(2**20)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except NOT_JSON as error:
                raise UserError(f"{path}, line {number}: not json: {_why(error)}{_remedy(line)}") from error
            _require_object(row, f"{path}, line {number}")
            yield row


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file. Errors give the byte offset in the file.

    `splitlines` would also split at U+2028, which may occur inside a string.
    """
    if is_utf_16(path):
        with open_text(path) as text:
            yield from text
        return
    begun = 0
    with open_bytes(path) as file:
        for line in file:
            try:
                yield line.decode("utf-8-sig" if begun == 0 else "utf-8")
            except UnicodeDecodeError as error:
                error.start += begun
                raise
            begun += len(line)


def _read_json(path: Path) -> Iterator[Row]:
    try:
        with open_text(path) as file:
            data = json.loads(file.read())
    except NOT_JSON as error:
        if (
            getattr(error, "msg", "") == "Extra data"
        ):  # json lines in a .json file, which datasets also accepts
            yield from _read_jsonl(path)
            return
        raise UserError(f"{path}{_line_of(error)}: not json: {_why(error)}") from error
    if isinstance(data, dict):
        _refuse_columns(data, path)
        lists = [value for key, value in data.items() if key in ROWS_KEYS and isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else [data]
    rows = data if isinstance(data, list) else [data]
    for number, row in enumerate(rows, start=1):
        _require_object(row, f"{path}, item {number}")
        yield row


ROWS_KEYS = ("data", "rows", "examples", "records")
"""Keys that hold the list of rows in an object that also says where they come from."""
BY_ROW = "write one object per row, in pandas df.to_json(FILE, orient='records', lines=True)"


def _refuse_columns(data: dict[str, Any], path: Path) -> None:
    """Refuse an object that holds columns instead of rows, as pandas writes by default."""
    values = list(data.values())
    if len(values) < 2:
        return
    by_index = all(isinstance(v, dict) and len(v) > 1 and v.keys() == values[0].keys() for v in values)
    by_place = all(isinstance(v, list) and len(v) == len(values[0]) > 1 for v in values)
    if by_index or by_place:
        raise UserError(f"{path} holds columns ({', '.join(map(repr, data))}), not rows; {BY_ROW}"[:500])


def _line_of(error: Exception) -> str:
    return f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)


def _remedy(line: str) -> str:
    """Return what to change in a line that is nearly JSON."""
    line = line.strip()
    if line.startswith("{'"):
        return "; the line is a Python dict, not JSON: write each row with json.dumps"
    if line.startswith("{") and line.endswith("},"):
        return "; the line ends in a comma: remove it, as jsonl has one object per line and nothing else"
    return ""


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


def _read_arrow(path: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow file or stream, of which `datasets` writes the latter."""
    import pyarrow
    from pyarrow import ipc

    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                reader = ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            except pyarrow.ArrowInvalid:
                file.seek(0)
                batches = iter(ipc.open_stream(file))
            for batch in batches:
                for at in range(0, batch.num_rows, PARQUET_ROWS):
                    yield from batch.slice(at, PARQUET_ROWS).to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path} is not an arrow file: {first_line(error)}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
BINARY = (".parquet", ".arrow")
"""Formats with a compression of their own."""
REMEDIES = {
    ".xlsx": "; save the sheet as csv (UTF-8)",
    ".xls": "; save the sheet as csv (UTF-8)",
    ".pkl": "; write its rows as jsonl: a pickle may run code when it is read",
    ".zip": "; unpack it",
    ".tar": "; unpack it",
}
