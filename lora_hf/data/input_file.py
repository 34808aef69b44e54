"""Dialogues that are only summarized: a file, plain text, or standard input. They need no references."""

import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lora_hf.config import DataConfig
from lora_hf.data.columns import (
    BRACES,
    DIALOGUE,
    HEAD,
    PLAIN,
    SOURCES,
    TO_SET,
    MissingColumn,
    Row,
    find_columns,
    has_column,
)
from lora_hf.data.examples import Example, check_rows, dialogues_of
from lora_hf.data.opened import DELIMITERS, UTF_16, Form, endings
from lora_hf.data.readers import READERS, REMEDIES, TEXT, read_lines, read_text
from lora_hf.data.remote import files_at, is_address
from lora_hf.data.sources import Part, check_form, read_source, refuse_columns
from lora_hf.data.splits import read_part, report_template
from lora_hf.errors import NOT_JSON, UserError, as_typed, in_words

logger = logging.getLogger(__name__)
STANDARD_INPUT = "-"
OF_ROWS = ("dialogue_column", "id_column", "explode")
"""Fields of `data` that name columns of the rows that texts are read from."""
OPTIONS = {"dialogue_column": "--dialogue-column"}
"""The option of `predict` for a field."""


@dataclass(frozen=True)
class FileText(Example):
    """A text of a file, with its row as it is there."""

    row: Row = field(default_factory=dict, compare=False)
    others: tuple[str, ...] = field(default=(), compare=False)
    """Columns of the row that neither the text nor the id is read from."""


def read_file(
    file: str | Path,
    config: DataConfig,
    is_lines: bool = False,
    trained_by: Mapping[str, Any] | None = None,
) -> list[FileText]:
    """Read the dialogues of one file, one per row, without references.

    Args:
        file: a file of rows or its address, a folder of `save_to_disk`, a `.txt` with one dialogue, or `-`
            for standard input: json, json lines or one dialogue.
        config: how the file is read.
        is_lines: whether plain text has one dialogue per line.
        trained_by: fields of `data` that the model's training was read by; they are taken where the config
            does not set them and the file has the columns.

    Raises:
        UserError: no such file or column, a row without text, or a field of the config that the file is not
            read by.
    """
    if is_address(str(file)):
        (file,) = files_at(str(file), "predict")[:1]
    if str(file) != STANDARD_INPUT:
        return _read(Path(file).expanduser(), config, is_lines, trained_by or {})
    with _standard_input(is_lines) as copy:
        try:
            return _read(copy, config, is_lines, trained_by or {}, "standard input")
        except UserError as error:
            raise UserError(str(error).replace(str(copy), "standard input")) from error


def _read(
    file: Path, config: DataConfig, is_lines: bool, trained_by: Mapping[str, Any], name: str = ""
) -> list[FileText]:
    name = name or str(file)
    form = Form.of(config)
    if is_lines and endings(file)[0] in READERS:
        raise UserError(f"--lines is for plain text, and {file} is a file of rows: leave it out")
    ending = endings(file)[0]
    if not is_lines and file.is_file() and ending not in (*READERS, *REMEDIES, TEXT, *form.parallel):
        raise UserError(
            f"{file}: cannot read files ending in {ending!r}; supported are {', '.join((*READERS, TEXT))}; "
            "if it is plain text, one text per line, add --lines"
        )
    given, original = config, list[Row]()

    def kept(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            original.append(dict(row))
            yield row

    if is_lines or (ending == TEXT and file.is_file()):
        texts = read_lines(file, form) if is_lines else [read_text(file, form).strip()]
        check_form(form, [file], is_text=True)
        named = {field: getattr(given, field) for field in OF_ROWS if field in given.model_fields_set}
        refuse_columns(name, {OPTIONS.get(field, f"data.{field}"): named[field] for field in named})
        part = Part(kept([{DIALOGUE: text} for text in texts]), name)
        rows, columns = list(part.rows), replace(PLAIN, turn_template=given.turn_template)
        head = rows
    else:
        form = _exploded_as_trained(file, form, trained_by)
        part = Part(read_source(file, form), name, files=(file,), form=form)
        head = list(islice(part.rows, HEAD))
        check_form(form, [file])
        part = replace(part, rows=kept(chain(head, part.rows)))
        try:
            read_by = _as_trained(head, config, trained_by, part.name)
            found, columns = read_part(part, read_by, needs_references=False)
        except MissingColumn as error:
            raise UserError(_by_option(error, config, trained_by)) from error
        except UserError as error:
            text = str(error).replace("data.dialogue_column=", "--dialogue-column=", 1)
            raise UserError(TO_SET.sub(_to_read, text)) from error
        rows, config = list(found), read_by
    columns = replace(columns, references=())
    if "turn_template" in given.model_fields_set:
        report_template(columns, head, name)
    read = {columns.dialogue, columns.id, *BRACES.findall(columns.dialogue)}
    rows_of = {id(row): own for row, own in zip(rows, original, strict=True)}
    checked = check_rows(rows, columns, config, part)
    return [
        FileText(text.id, text.dialogue, (), own, tuple(name for name in own if name not in read))
        for text, own in zip(dialogues_of(checked), (rows_of[id(row)] for row in checked), strict=True)
    ]


def _exploded_as_trained(file: Path, form: Form, trained_by: Mapping[str, Any]) -> Form:
    """Return the form with the `explode` of training, where the file has that list and the form has none."""
    path = trained_by.get("explode")
    if not path or form.explode:
        return form
    if not has_column(list(islice(read_source(file, form), HEAD)), path.partition(".")[0]):
        return form
    logger.info("%s: each item of %r is a text, as in training (data.explode)", file, path)
    return replace(form, explode=path)


def _as_trained(head: list[Row], config: DataConfig, trained_by: Mapping[str, Any], name: str) -> DataConfig:
    """Return the config with the columns of training where the file has them, or has no others."""
    taken = {field: value for field, value in trained_by.items() if field not in config.model_fields_set}
    if "id_column" in taken and not has_column(head, taken["id_column"]):
        del taken["id_column"]
    taken.pop("summary_column", None)  # references are not read here
    column = taken.get("dialogue_column")
    if column is not None and head and not has_column(head, column):
        try:
            found = find_columns(head, config, name, needs_references=False)
            del taken["dialogue_column"]
        except UserError:
            pass  # the error names the column of training
        else:
            text = "%s has no column %r, on which the model was trained; column %r is read instead"
            logger.info(text, name, column, found.dialogue)
    elif column is not None:
        logger.info("%s: the texts are read by %r, as in training (--dialogue-column)", name, column)
    return config.model_copy(update=taken)


def _to_read(to_set: re.Match[str]) -> str:
    """Return the option of `predict` in the place of a remedy that names the columns of a config."""
    others = f" or --dialogue-column {as_typed(to_set[2])}" if to_set[3] else ""
    return f"write --dialogue-column {as_typed(to_set[1])}{others}"


def _by_option(error: MissingColumn, config: DataConfig, trained_by: Mapping[str, Any]) -> str:
    """Return the message on a missing column with the option of `predict` that names another."""
    if error.option != "data.dialogue_column":
        return str(error)
    columns = f"(columns: {in_words(error.present)})"
    if "dialogue_column" in config.model_fields_set:
        text = f"--dialogue-column={error.name!r}: {error.source} has no such column {columns}"
    elif error.name == trained_by.get("dialogue_column"):
        trained = f"the model was trained on the column {error.name!r}"
        text = f"{trained}, which {error.source} does not have {columns}"
    else:
        text = f"{error.source} has no column {error.name!r} {columns}"
    likely = (*error.likely, *error.present, "COLUMN")[0]
    such_as = ", such as" if len(error.present) > 1 else ":"
    return f"{text}; name yours{such_as} --dialogue-column {as_typed(likely)}"


@contextmanager
def _standard_input(is_lines: bool) -> Iterator[Path]:
    """Yield a copy of standard input under a name that says its format."""
    content = sys.stdin.buffer.read()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"input{TEXT if is_lines else _ending_of(content)}"
        copy.write_bytes(content)
        yield copy


def _warn_of_columns(content: bytes) -> None:
    """Say that a text is taken as one dialogue if it looks like a row of names with rows of cells below."""
    header, _, rows = content.decode(errors="replace").partition("\n")
    for delimiter in DELIMITERS if rows.strip() else ():
        names = [name.strip(' \r"') for name in header.split(delimiter)]
        if len(names) > 1 and not {*names}.isdisjoint(SOURCES):
            logger.warning(
                "standard input looks like rows with the columns %s, and is taken as one text: it can be "
                "json, json lines or text; give the file's path for a prediction per row",
                in_words(names),
            )


def _ending_of(content: bytes) -> str:
    """Return the ending of json, of json lines, or of text, which is all that is neither."""
    if content[:2] in UTF_16:
        return TEXT
    begin = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin.startswith(b"["):
        try:
            rows = json.loads(begin)
        except NOT_JSON:
            return TEXT
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise UserError(
                "standard input is a JSON list whose items are not objects: write each text as "
                '{"dialogue": ...}, or one text per line with --lines; a text that is a list goes in a file'
            )
        return ".json"
    if not re.match(rb'\{\s*["}]', begin):
        _warn_of_columns(begin)
        return TEXT
    try:
        json.loads(begin.splitlines()[0])
    except NOT_JSON:
        return ".json"
    return ".jsonl"
