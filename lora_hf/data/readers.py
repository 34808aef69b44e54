"""Read a file of dialogues or of saved predictions into rows.

The readers are those of the standard library and, for parquet and arrow, of pyarrow. pandas and `datasets`
read csv and json too, but change texts in silence, which no option prevents in all cases (docs/data.md lists
them), and do not say which line is broken. Here, csv cells stay text.
"""

import csv
import json
import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lora_hf.data.explode import Row, exploded
from lora_hf.data.opened import (
    COMPRESSIONS,
    DELIMITERS,
    EXCEL_DELIMITER,
    SEEN,
    Form,
    delimiter_of,
    encoding_of,
    endings,
    open_bytes,
    open_text,
    readable,
)
from lora_hf.data.prompts import unix_lines
from lora_hf.data.split_names import split_named
from lora_hf.errors import NOT_JSON, UserError, did_you_mean, first_line, listed, path_hint

logger = logging.getLogger(__name__)
Numbered = Iterator[tuple[int | None, Row]]
"""Rows with the line that each begins in."""
PARQUET_ROWS = 1024
"""Rows decoded at once."""
JSON_TYPES: dict[type, str] = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
"""Description, in messages, of a value of a JSON file that is not an object."""


def read_rows(path: str | Path, form: Form = SEEN) -> list[Row]:
    """Read a csv, tsv, jsonl, json, parquet or arrow file; the file extension decides which.

    Texts may be compressed (gz, bz2, xz, zst), and are in UTF-8, or in UTF-16 with a byte order mark, unless
    `form` names an encoding. The columns of csv are separated by what separates the header: a comma, or else
    a tab, semicolon or vertical bar.

    Returns:
        One dict per row, by column; at least one row. json rows may differ in their columns.

    Raises:
        UserError: no such file, an unknown extension, another encoding, malformed (with the line), or no
            rows.
    """
    rows = list(iterate_rows(path, form))
    if not rows:
        raise UserError(f"{path} has no rows; give a file with one row for each text")
    return rows


def iterate_rows(path: str | Path, form: Form = SEEN) -> Iterator[Row]:
    """Yield the rows of `read_rows` one by one. Only json files are read into memory as a whole.

    Raises:
        UserError: as `read_rows`, except for no rows; malformed rows raise when they are reached.
    """
    return (row for _, row in iterate_numbered(Path(path).expanduser(), form))


def iterate_numbered(path: Path, form: Form = SEEN) -> Iterator[tuple[int | None, Row]]:
    """Yield each row with the line that it begins in; None for formats without lines.

    Raises:
        UserError: as `iterate_rows`.
    """
    ending, compression = endings(path)
    reader = None if compression and ending in BINARY else READERS.get(ending)
    if ending and ending in form.parallel:
        reader = _read_parallel
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file ({', '.join(READERS)})")
    if not path.exists():
        hint = path_hint(str(path))
        if "Did you mean" not in hint and reader is None and " " in path.name:
            hint = " Give a file; one dialogue by itself may be in a .txt file."
        raise UserError(f"{path}: no such file.{hint}")
    if reader is None:
        remedy = REMEDIES.get(ending, "")
        raise UserError(
            f"{path}: cannot read files ending in {ending + compression!r}; supported are "
            f"{', '.join(READERS)}, and texts with {', '.join(COMPRESSIONS)} after it{remedy}"
        )
    with readable(path, form):
        rows = reader(path, form)
        yield from exploded(rows, form.explode, str(path)) if form.explode else rows


def read_text(path: Path, form: Form = SEEN) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        UserError: in another encoding, or not readable.
    """
    with readable(path, form), open_text(path, form) as file:
        return file.read()


TEXT = ".txt"


def read_lines(path: Path, form: Form = SEEN) -> list[str]:
    """Return the lines of a plain text file; only line breaks end them, and the last one is optional.

    Raises:
        UserError: as `read_text`, or no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.{path_hint(str(path))}")
    text = unix_lines(read_text(path, form))
    return text.removesuffix("\n").split("\n") if text else []


def _refuse_repeated(path: Path, names: list[str]) -> None:
    """Refuse two columns of one name, of which a row as a dict would keep the last.

    Those without a name, as spreadsheets write empty ones, cannot be asked for.
    """
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"{path}: more than one column is named {repeated[0]!r}")


def _read_csv(path: Path, form: Form) -> Numbered:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long dialogue
    delimiter = delimiter_of(path, form)
    with open_text(path, form) as file:
        raw: list[str] = []  # the lines of one row

        def lines() -> Iterator[str]:
            for text in file:
                raw.append(text)
                yield text

        reader = csv.reader(lines(), strict=True, delimiter=delimiter, escapechar=form.escapechar)
        quoted_late = re.compile(rf'(?:^|{re.escape(delimiter)}) +"(?!")')
        line = 1
        try:
            first = next(filter(None, reader), [])
            if EXCEL_DELIMITER.fullmatch(delimiter.join(first)):
                first = next(filter(None, reader), [])
            names = list(form.column_names or (name.strip() for name in first))
            _refuse_repeated(path, names)
            if any(name[:1] == '"' for name in names) and quoted_late.search("".join(raw)):
                raise UserError(f"{path}, line {reader.line_num}: {NO_SPACE}")
            if not form.column_names:
                raw.clear()
            line = reader.line_num if form.column_names else reader.line_num + 1
            for cells in chain([first] if form.column_names else [], reader):
                if cells and len(cells) != len(names):
                    count = "more" if len(cells) > len(names) else "fewer"
                    mark = DELIMITERS.get(delimiter, repr(delimiter))
                    remedy = "put cells that contain one in quotes"
                    if any(cell[:1] == " " and cell.lstrip()[:1] == '"' for cell in cells):
                        remedy = NO_SPACE
                    elif len(names) == 1 and not form.column_names:
                        remedy = (
                            f"if the first line, {names[0][:40]!r}, is not the names of columns, remove it"
                        )
                    elif form.column_names:
                        remedy = f"data.column_names must name each column of the file, or {remedy}"
                    raise UserError(
                        f"{path}, line {line}: {count} cells than the {len(names)} columns ({len(cells)}, "
                        f"separated by {mark}); {remedy}"
                    )
                is_late = any(cell[:1] == " " and cell[-1:] == '"' for cell in cells)
                if is_late and quoted_late.search("".join(raw)):
                    raise UserError(f"{path}, line {line}: {NO_SPACE}")
                raw.clear()
                if cells:  # a blank line has none
                    yield line, dict(zip(names, cells, strict=True))
                line = reader.line_num + 1
        except csv.Error as error:
            has_backslashes = form.escapechar is None and _has_backslash_quotes(path)
            remedy = BACKSLASHES if has_backslashes else NOT_CLOSED
            raise UserError(f"{path}, line {line}: not csv: {error}{remedy}") from error


NO_SPACE = "a quote counts only where a cell begins: remove the space before the quote"
BACKSLASHES = "; quotes inside cells are written \\\" there: set data.escapechar: '\\'"


NOT_CLOSED = (
    "; a cell that begins with a quote must end with one: close it there, and double the quotes inside cells"
)


def _has_backslash_quotes(path: Path) -> bool:
    with open_bytes(path) as stream:
        return b'\\"' in stream.read(2**20)


def _read_jsonl(path: Path, form: Form) -> Numbered:
    for number, line in enumerate(_lines(path, form), start=1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except NOT_JSON as error:
                raise UserError(f"{path}, line {number}: not json: {_why(error)}{_remedy(line)}") from error
            _require_object(row, f"{path}, line {number}", ONE_LIST if isinstance(row, list) else "")
            yield number, row


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """Return an object; Python would keep the last of two values with one key, and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {repeated!r} twice")
    return found


def _lines(path: Path, form: Form) -> Generator[str, None, None]:
    """Yield the lines of a file. In UTF-8, errors give the byte offset in the file.

    `splitlines` would also split at U+2028, which may occur inside a string.
    """
    if encoding_of(path, form) != "utf-8":
        with open_text(path, form) as text:
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


def _read_json(path: Path, form: Form) -> Numbered:
    try:
        with open_text(path, form) as file:
            data = json.loads(file.read(), object_pairs_hook=_object)
    except NOT_JSON as error:
        # json lines in a .json file, which datasets also accepts
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            if error.lineno > 1 and error.doc.lstrip().partition("\n")[0].strip() == "{":
                raise UserError(f"{path}{_line_of(error)}: not json: {ONE_AFTER_ANOTHER}") from error
            if form.json_field is not None:
                _warn_of_field(form.json_field, path)
            yield from _read_jsonl(path, form)
            return
        remedy = _comma_before(error)
        raise UserError(f"{path}{_line_of(error)}: not json: {_why(error)}{remedy}") from error
    for number, row in enumerate(_rows_in(data, path, form), start=1):
        _require_object(row, f"{path}, item {number}")
        yield None, row


@lru_cache  # a file is read for each split
def _warn_of_field(field: str, path: Path) -> None:
    text = (
        "data.json_field=%r has no effect on %s, which has a json object on each line: all of them are rows"
    )
    logger.warning(text, field, path)


ROWS_KEYS = ("data", "rows", "examples", "records")
"""Keys that hold the list of rows in an object that also says where they come from."""


def _rows_in(data: Any, path: Path, form: Form) -> list[Any]:
    """Return the rows of a json file: a list, an object that holds one, columns, or a single row."""
    if form.json_field is not None:
        data = _field(data, form.json_field, path)
    if not isinstance(data, dict):
        return data if isinstance(data, list) else [data]
    if rows := _by_column(data):
        logger.info("%s holds one object; it is read as %s rows", path, f"{len(rows):,}")
        return rows
    if form.json_field is not None:
        return [data]
    lists = [value for key, value in data.items() if key in ROWS_KEYS and isinstance(value, list)]
    if len(lists) == 1:
        return lists[0]
    held = [key for key, value in data.items() if value and isinstance(value, list) and all_objects(value)]
    if len(held) > 1 and len(held) == sum(isinstance(value, list | dict) for value in data.values()):
        raise UserError(
            f"{path} holds rows under {', '.join(map(repr, listed(held, 5)))}: set data.json_field to one of "
            f"them, such as data.json_field: {held[0]}{_each_to_a_file(held)}"
        )
    return [data]


def _each_to_a_file(names: list[str]) -> str:
    """Return what to do instead where a file holds several splits, of which a field is only one."""
    if len({split_named(name) for name in names} - {None}) < 2:
        return ""
    return "; to use all of them, write each to a file of its own in one folder"


def all_objects(values: list[Any]) -> bool:
    """Return whether all items of a list are objects."""
    return all(isinstance(value, dict) for value in values)


def _field(data: Any, name: str, path: Path) -> Any:
    """Return what is under a key of a json file; `a.b` is the key b inside a."""
    found, rest = data, name
    while rest:
        if not isinstance(found, dict):
            raise UserError(f"data.json_field={name!r}: {path} has no object there, but {_kind(found)}")
        key, _, later = (rest, "", "") if rest in found else rest.partition(".")
        if key not in found:
            keys = [str(one) for one in found]
            raise UserError(
                f"data.json_field={name!r}: {path} has the keys {listed(keys)}.{did_you_mean(key, keys)}"
            )
        found, rest = found[key], later
    return found


def _by_column(data: dict[str, Any]) -> list[Row]:
    """Return the rows of an object that holds columns, as pandas writes by default; else no rows.

    An object holds rows under their names (`orient="index"`) if its keys are numbers and theirs are not, or
    if it has more keys than they have, some of which all of them share. `orient="split"` is read too.
    """
    values = list(data.values())
    if len(values) < 2:
        return []
    names, cells = data.get("columns"), data.get("data")
    if (
        isinstance(names, list)
        and isinstance(cells, list)
        and all(isinstance(name, str) for name in names)
        and all(map(_is_cells_of(names), cells))
    ):
        return [dict(zip(names, row, strict=True)) for row in cells]
    if all(isinstance(v, dict) for v in values) and not any(map(split_named, data)):
        keys = list(dict.fromkeys(key for v in values for key in v))
        is_numbered = all(map(str.isdecimal, data))
        shared = [key for key in keys if all(key in v for v in values)]
        is_named = shared and len(data) > len(keys) > 1 and not _has_texts(data)
        if not any(map(str.isdecimal, keys)) and (is_numbered or is_named):
            return values
    if all(isinstance(v, dict) and len(v) > 1 and v.keys() == values[0].keys() for v in values):
        columns = [[value[key] for key in values[0]] for value in values]
    elif all(isinstance(v, list) and len(v) == len(values[0]) > 1 for v in values):
        columns = values
        if any(isinstance(cell, dict) for column in columns for cell in column):
            return []
    else:
        return []
    return [dict(zip(data, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _has_texts(names: Iterable[str]) -> bool:
    """Return whether names are those of columns with texts, and so not of rows."""
    from lora_hf.data.columns import PAIRS  # here: it imports this module

    return not {name for pair in PAIRS for name in pair}.isdisjoint(names)


def _is_cells_of(names: list[Any]) -> Callable[[Any], bool]:
    return lambda row: isinstance(row, list) and len(row) == len(names)


def _line_of(error: Exception) -> str:
    return f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return first_line(error)


ONE_AFTER_ANOTHER = (
    "several objects, one after another; put them in one list, [{...}, {...}], or write each on one line"
)
ONE_LIST = "; if the file is one JSON list, rename it to .json"


def _comma_before(error: Exception) -> str:
    """Return what to change where a comma stands before the end of a list or an object."""
    if not isinstance(error, json.JSONDecodeError):
        return ""
    before, after = error.doc[: error.pos + 1].rstrip("]} \t\r\n"), error.doc[error.pos :].lstrip(", \t\r\n")
    return "; remove the comma before it" if before.endswith(",") and after[:1] in ("]", "}") else ""


def _remedy(line: str) -> str:
    """Return what to change in a line that is nearly JSON."""
    line = line.strip()
    if line in ("[", "{"):
        return "; if the file is one JSON list or object over several lines, rename it to .json"
    if line.startswith("{'"):
        return "; the line is a Python dict, not JSON: write each row with json.dumps"
    if line.startswith("{") and line.endswith("},"):
        return "; the line ends in a comma: remove it, as jsonl has one object per line and nothing else"
    return ""


def _kind(value: object) -> str:
    return "an object" if isinstance(value, dict) else JSON_TYPES.get(type(value), "a number")


def _require_object(row: object, where: str, remedy: str = "") -> None:
    if not isinstance(row, dict):
        text = f"{where}: must be an object such as {{column: text, ...}}, and is {_kind(row)}"
        raise UserError(f"{text}{remedy}")


SOURCE, TARGET = "source", "target"
"""Columns of parallel files."""


def parallel_to(path: Path, form: Form) -> list[Path]:
    """Return the file itself and those that are parallel to it, in the order of `data.parallel_files`.

    Raises:
        UserError: one is missing; a test split alone may lack its targets.
    """
    ending, compression = endings(path)
    stem = path.name.removesuffix(compression)[: -len(ending)]
    found = []
    for other in form.parallel:
        beside = [path.with_name(f"{stem}{other}{packed}") for packed in ("", *COMPRESSIONS)]
        found += [file for file in beside if file.is_file()][:1]
    missing = [o for o in form.parallel if not any(endings(file)[0] == o for file in found)]
    if missing and (form.parallel[0] in missing or split_named(stem.lower()) != "test"):
        given = list(form.parallel_files or ())
        raise UserError(f"data.parallel_files={given}: {path} has no {stem}{missing[0]} beside it")
    return found


def _read_parallel(path: Path, form: Form) -> Numbered:
    """Yield the lines of files with one text per line; only line feeds end them, as in `wc -l`."""
    files = parallel_to(path, form)
    with ExitStack() as stack:
        streams = []
        for file in files:
            stack.enter_context(readable(file, form))
            streams.append(stack.enter_context(closing(_lines(file, form))))
        for number, lines in enumerate(zip_longest(*streams), start=1):
            if None in lines:
                counts = ", ".join(f"{sum(1 for _ in _lines(file, form)):,} in {file}" for file in files)
                raise UserError(f"data.parallel_files: the files differ in their number of lines: {counts}")
            texts = [line.rstrip("\r\n") for line in lines]
            targets = {} if len(texts) == 1 else {TARGET: texts[1] if len(texts) == 2 else texts[1:]}
            yield number, {SOURCE: texts[0], **targets}


def _label_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the labels of each column, as `datasets` writes them into a file's schema."""
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = written.get("info", {}).get("features", {})
        labels = {name: one for name, one in features.items() if one.get("_type") == "ClassLabel"}
        return {name: list(one["names"]) for name, one in labels.items() if one.get("names")}
    except (*NOT_JSON, AttributeError, TypeError):
        return {}


def _named(row: Row, labels: dict[str, list[str]]) -> Row:
    """Return a row with the names of its labels; -1, which stands for no label, becomes None."""
    for name, names in labels.items():
        if isinstance(at := row.get(name), int) and at < len(names):
            row[name] = names[at] if at >= 0 else None
    return row


def _read_parquet(path: Path, form: Form) -> Numbered:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        _refuse_repeated(path, file.schema_arrow.names)
        labels = _label_names(file.schema_arrow)
        for batch in file.iter_batches(PARQUET_ROWS):
            yield from ((None, _named(row, labels)) for row in batch.to_pylist())
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path} is not a parquet file: {first_line(error)}") from error


def _read_arrow(path: Path, form: Form) -> Numbered:
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
                reader = ipc.open_stream(file)
                batches = iter(reader)
            _refuse_repeated(path, reader.schema.names)
            labels = _label_names(reader.schema)
            for batch in batches:
                for at in range(0, batch.num_rows, PARQUET_ROWS):
                    rows = batch.slice(at, PARQUET_ROWS).to_pylist()
                    yield from ((None, _named(row, labels)) for row in rows)
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path} is not an arrow file: {first_line(error)}") from error


READERS: dict[str, Callable[[Path, Form], Numbered]] = {
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
    ".tgz": "; unpack it",
    ".7z": "; unpack it",
    ".rar": "; unpack it",
}
