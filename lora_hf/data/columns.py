"""Find the columns of a source, and read a row by them: the dialogue, its references and its id.

Columns that the config names are taken as they are, nested ones with a dot (`translation.de`). Where the
default names are missing, columns are found by the names below, if exactly one pair of them fits; nothing is
guessed between two. A name with braces joins columns: `{context}\n\n{question}`.
"""

import ast
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any
from unicodedata import normalize

from lora_hf.arguments import is_blank
from lora_hf.config import DataConfig
from lora_hf.config.task import TASKS
from lora_hf.data.translation import TRANSLATION, direction, languages_in
from lora_hf.errors import NOT_JSON, UserError, as_typed, did_you_mean, in_words

Row = dict[str, Any]
DIALOGUE, SUMMARY, ID = "dialogue", "summary", "id"
"""Keys of a row that was read by its columns; also the default names of the columns."""
QUESTION, WITH_CONTEXT = "question", TASKS["question_answering"].source_column
PAIRS = (
    ("dialogue", "summary"),
    ("article", "highlights"),
    ("document", "summary"),
    ("text", "target"),
    ("source", "target"),
    (QUESTION, "answer"),
    ("input", "output"),
    ("input_text", "target_text"),
    ("source_text", "target_text"),
    ("prompt", "completion"),
)
"""Names of source and target that are found by themselves."""
QUESTIONS = ((WITH_CONTEXT, "answer"), (WITH_CONTEXT, "answers.text"))
"""The same for questions about a text, as SQuAD has them: both are the source."""
DEFAULTS = {(task.source_column, task.target_column) for task in TASKS.values()}
"""Names that a config has by its task, and which give way to the pairs above."""
OTHER_IDS = ("fname",)
NAMED_AS_ID = re.compile(r"(?i)(^|[^a-z])(id|key|no|nr|num|number|uuid|ticket|case|ref)($|[^a-z])|I[Dd]$")
LIKE_ID = re.compile(r"(?!\d+[.,]\d+$)[^\s]{1,40}")
"""What names a row: no fraction, which is a measured value."""
SPEAKERS = ("speaker", "role", "name", "from", "user")
TEXTS = ("text", "content", "utterance", "value", "message")
ALIASES = {"speaker": SPEAKERS, "text": TEXTS}
"""Usual names of the keys of a turn, by the names in a template."""
SOURCES = ("instruction", *(source for source, _ in PAIRS))
TURN = "{speaker}: {text}"
"""Default of `data.turn_template`."""
INSTRUCTION = "instruction"
MESSAGES, CONVERSATIONS = "messages", "conversations"
PLACES = re.compile(r"\{(\w+)\}")
"""The places of a turn's template."""
BRACES = re.compile(r"\{([^{}]+)\}")
"""A column in a name that joins several."""
HEAD = 100
"""Rows that are looked at for columns; a first row may lack one."""
LONGEST_NAME = 80
"""Characters of the longest name of a column; longer ones are texts of a file without a header."""
LIKE_TEXT = re.compile(r"\n|^\d+$|[.?!。？！]$")
"""What is in a text and in no name of a column: a line break, digits alone, the end of a sentence."""
WORDS = re.compile(r"[^\W\d_]+\W+[^\W\d_]+")
"""Two words, which a date, a number or a label lacks."""
TO_SET = re.compile(
    r"set data\.dialogue_column: (\S+) and data\.summary_column: (\[.*?\]|[^\s,;]+)"
    r"(, or the other way round)?"
)
"""A remedy of messages on columns, in whose place commands name their option."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """The columns of a source."""

    dialogue: str
    references: tuple[str, ...]
    """Empty where the source has no references."""
    id: str
    is_found: bool = False
    """True if they were found by the names above."""
    turn_template: str = TURN
    """Template that makes a turn of a dialogue a line."""
    is_numeric: bool = False
    """True if the references are numbers, such as labels, which are read as text."""
    is_csv: bool = False
    """True if lists, of references or turns, can only be written as JSON or by Python in a text."""

    def __str__(self) -> str:
        return f"{self.dialogue!r} -> {', '.join(map(repr, self.references)) or 'no references'}"

    def read(self, row: Row) -> Row:
        """Return the row with its dialogue as text, its references and its id under their keys.

        A cell of another type than expected is left as it is, and is refused by the check that follows.
        """
        if self == PLAIN and isinstance(row.get(DIALOGUE), str) and not isinstance(row.get(SUMMARY), list):
            return row
        if self.dialogue == MESSAGES and self.is_found:
            return row | {ID: cell(row, self.id)} | _from_messages(row.get(MESSAGES), self.turn_template)
        dialogue = joined(self._cell(row, self.dialogue), self.turn_template)
        if self.is_found and self.dialogue == "input" and isinstance(text := row.get(INSTRUCTION), str):
            dialogue = f"{text}\n\n{dialogue}" if dialogue else text
        read = {DIALOGUE: dialogue, ID: cell(row, self.id)}
        if len(self.references) == 1:
            read[SUMMARY] = self._cell(row, self.references[0])
            if isinstance(read[SUMMARY], list):
                read[SUMMARY] = [text for text in read[SUMMARY] if not _lacks_text(text)]
            if self.is_numeric and _is_number(read[SUMMARY]):
                read[SUMMARY] = str(read[SUMMARY]).lower()  # true and false, as json has them
        elif self.references:  # an annotator may have left one out, but not all
            found = [cell(row, name) for name in self.references]
            read[SUMMARY] = [text for text in found if not _lacks_text(text)]
        return row | read

    def _cell(self, row: Row, name: str) -> Any:
        return cell(self._with_lists(row, name), name, self.turn_template)

    def _with_lists(self, row: Row, name: str) -> Row:
        """Return a row of csv with the lists that the cells of a column, or of a template's, are as JSON."""
        if not self.is_csv:
            return row
        names = (name,) if name in row else (BRACES.findall(name) or (name,))
        return row | {one: list_in(row[one]) for one in names if isinstance(row.get(one), str)}

    def bad_column(self, row: Row) -> str:
        """Return the column of the dialogue, or the one of a template's that has no text in a row."""
        inner = () if self.dialogue in row else BRACES.findall(self.dialogue)
        inner = () if DIALOGUE in inner else inner  # the row has the whole text under this key
        row = self._with_lists(row, self.dialogue)
        found = {name: joined(cell(row, name), self.turn_template) for name in inner}
        return bad_part(found) or self.dialogue.replace("\n", "\\n")


PLAIN = Columns(DIALOGUE, (SUMMARY,), ID)


class MissingColumn(UserError):
    """A source lacks a column, and the remedy is to name another: commands name their own option for that.

    Args:
        message: as of `UserError`.
        option: the field that names the column.
        name: the missing column.
        source: what messages call the rows.
        present: the columns of the source, in its order.
        likely: of these, what may be the input and the target; empty where no two are texts.
    """

    def __init__(
        self, message: str, option: str, name: str, source: str, present: list[str], likely: tuple[str, ...]
    ) -> None:
        super().__init__(message)
        self.option, self.name, self.source = option, name, source
        self.present, self.likely = present, likely


def cell(row: Mapping[str, Any], name: str, turn_template: str = TURN) -> Any:
    """Return a cell; a name with dots that is not a column itself stands for nested objects, or for
    a field of each object in a list.

    A name with braces is a template: the text with each column in its place, turns as lines. If one of them
    is missing, empty, or neither text nor a number, it stands for the whole.
    """
    if name not in row and (inner := BRACES.findall(name)):
        found = {column: joined(cell(row, column), turn_template) for column in inner}
        if (bad := bad_part(found)) is not None:
            return found[bad]
        return BRACES.sub(lambda match: str(found[match[1]]), name)
    if name in row or "." not in name:
        return row.get(name)
    first, _, rest = name.partition(".")
    nested = value_in(row.get(first))
    if isinstance(nested, list) and all(isinstance(one, Mapping) for one in nested):
        return [cell(one, rest) for one in nested]
    return cell(nested, rest) if isinstance(nested, Mapping) else None


def bad_part(found: Mapping[str, Any]) -> str | None:
    """Return the first column of a template that is missing, empty, or neither text nor a number."""
    for column, value in found.items():
        if is_blank(value) if isinstance(value, str) else not _is_number(value):
            return column
    return None


def joined(turns: Any, template: str = TURN) -> Any:
    """Return turns as text, one turn per line: `Ann: Hi`; other cells are returned unchanged.

    Turns are a list of texts or of objects, or an object of lists of equal length, as `datasets` stores
    objects in a list. In the template, `{speaker}` and `{text}` stand for the usual names of these keys, and
    any other name for the key itself. A turn without a speaker is its text alone. Turns may also be pairs,
    `["Ann", "Hi"]`, or have their speakers as keys, `{"Ann": "Hi"}`.
    """
    if isinstance(turns, Mapping) and turns and all(isinstance(v, list) for v in turns.values()):
        if len({len(values) for values in turns.values()}) > 1:
            return turns
        turns = [dict(zip(turns, cells, strict=True)) for cells in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list) or not turns:
        return turns
    lines = []
    for turn in _with_speakers(turns):
        line = _line(turn, template) if isinstance(turn, Mapping) else turn
        if not isinstance(line, str):
            return turns
        lines.append(line)
    return "\n".join(lines)


def _with_speakers(turns: list[Any]) -> list[Any]:
    """Return turns that are pairs, or whose speakers are their keys, as objects; others unchanged.

    One key in all turns is not taken as a speaker: it may be another name for the text.
    """
    if all(isinstance(turn, list) and len(turn) == 2 and _is_name(turn[0]) for turn in turns):
        return [{"speaker": name, "text": text} for name, text in turns]
    if not all(isinstance(turn, Mapping) for turn in turns):
        return turns
    said = [{key: text for key, text in turn.items() if text is not None} for turn in turns]
    names = {key for turn in said for key in turn}
    if len(names) < 2 or any(len(turn) != 1 for turn in said) or names & {*SPEAKERS[:-1], *TEXTS}:
        return turns
    return [{"speaker": name, "text": text} for turn in said for name, text in turn.items()]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME and not re.search(r"[\n.?!。？！]$", value)


def _line(turn: Mapping[str, Any], template: str) -> str | None:
    """Return a turn as a line, or None if it lacks what the template names."""

    def value(name: str) -> str | None:
        found = (_said(turn.get(key)) for key in (name, *ALIASES.get(name, ())))
        return next((text for text in found if text is not None), None)

    values = {name: value(name) for name in PLACES.findall(template)}
    if template == TURN and not values["speaker"]:
        has_other = any(value and value == value for value in map(turn.get, SPEAKERS))  # not NaN
        return None if has_other else values["text"]
    if None in values.values():
        return None
    return PLACES.sub(lambda match: str(values[match[1]]), template)


def null_in(turns: list[Any], template: str) -> str:
    """Return what is null in the first turn that lacks its text for that; an empty text if none is."""
    for number, turn in enumerate(turns, start=1):
        if turn is None:
            return f"has null as turn {number}: remove it, or give it a text"
        if not isinstance(turn, Mapping) or _line(turn, template) is not None:
            continue
        nulls = [key for key, value in turn.items() if value is None or value != value]  # NaN
        places = PLACES.findall(template)
        read = {key for name in places for key in (name, *ALIASES.get(name, ()))}
        if named := [key for key in reversed(nulls) if key in read or len(turn) == 1]:
            return f"has null under {named[0]!r} in turn {number}: remove the turn, or give it a text"
    return ""


def _said(value: Any) -> str | None:
    """Return a value of a turn as text: a text, a number, or parts such as {type: text, text: ...}."""
    if isinstance(value, list) and value:
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in value]
        return "\n".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    return str(value) if isinstance(value, str) or _is_number(value) else None


def _from_messages(messages: Any, template: str) -> Row:
    """Read a conversation whose last message is the assistant's answer to what is before it.

    One that ends with another's message has no answer, and can only be predicted.
    """
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        return {}
    is_answered = len(messages) > 1 and messages[-1].get("role") == "assistant"
    before = messages[:-1] if is_answered else messages
    said = _content(before[0]) if len(before) == 1 else joined(before, template)
    return {DIALOGUE: said, SUMMARY: _content(messages[-1]) if is_answered else None}


def _content(message: Mapping[str, Any]) -> Any:
    content = message.get("content")
    return (_said(content) or content) if isinstance(content, list) else content


def list_in(text: str) -> Any:
    """Return the list of texts or objects that a cell of csv is, as `value_in` reads it; else the cell."""
    found = value_in(text) if text.lstrip().startswith("[") else text
    if not isinstance(found, list):
        return text
    texts = [one for one in found if one is not None]
    kinds = {str if isinstance(one, str) else dict if isinstance(one, dict) else None for one in texts}
    return found if kinds in ({str}, {dict}) else text


NUMPY = re.compile(r"""^\[(['"]).*\1\s+['"].*['"]\]$|^\{.*: array\(\[.*\}$""", re.DOTALL)
"""An array of texts as numpy prints it, with spaces between its items."""


def value_in(cell: Any) -> Any:
    """Return the list or object that a cell is as JSON, or as Python and so pandas write it; else the cell.

    Raises:
        UserError: an array of texts as numpy prints it, whose items Python would take as one text.
    """
    text = cell.strip() if isinstance(cell, str) else ""
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return cell
    with suppress(*NOT_JSON):
        return json.loads(text)
    with suppress(SyntaxError, MemoryError, *NOT_JSON):
        found = ast.literal_eval(text)
        if "".join(repr(found).split()) == "".join(text.split()):  # else two texts may have become one
            return found
    if NUMPY.match(text):
        raise UserError(
            f"a cell holds an array as numpy prints it, {text[:40]!r}, in which nothing separates the items: "
            "write it with json.dumps(array.tolist())"
        )
    return cell


def _lacks_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and is_blank(value))


def holds_numbers(columns: Columns, row: Row) -> bool:
    """Return whether the only column of references has a number in a row, such as a label."""
    return len(columns.references) == 1 and _is_number(cell(row, columns.references[0]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value  # NaN is a missing cell


def _is_empty(value: Any) -> bool:
    return value in (None, "", [])


def head_of(rows: Iterator[Row], config: DataConfig) -> list[Row]:
    """Take the first row, and up to `HEAD` rows where it lacks a column that the config names."""
    head = list(islice(rows, 1))
    named = (*_configured(config), *(() if config.id_column == ID else (config.id_column,)))
    if head and any(_is_empty(cell(head[0], name)) for name in named):
        head += islice(rows, HEAD - 1)
    return head


def likely_id(rows: Sequence[Row], columns: Columns) -> str | None:
    """Return a column that names each row, such as a ticket's number, where none is called `id` or `fname`.

    It is the first column, or is called so; `names_rows` says what its values are.
    """
    present = list(rows[0]) if rows else []
    if len(rows) < 2 or {ID, *OTHER_IDS} & {*present}:
        return None
    read = {columns.dialogue, *columns.references, *BRACES.findall(columns.dialogue)}
    named = [name for name in present if NAMED_AS_ID.search(name)]
    likely = (name for name in (*present[:1], *named) if name not in read)
    return next((name for name in likely if names_rows(name, rows)), None)


def names_rows(name: str, rows: Sequence[Row]) -> bool:
    """Return whether the values of a column are all different, without spaces, and no fractions."""
    values = ["" if row.get(name) is None else str(row[name]) for row in rows]
    return len({*values}) == len(values) and all(map(LIKE_ID.fullmatch, values))


def find_columns(
    head: list[Row],
    config: DataConfig,
    source: str,
    needs_references: bool = True,
    order: tuple[str, ...] = (),
) -> Columns:
    """Return the columns of a source, by the config or, where its default names are missing, by known names.

    Args:
        head: the first rows.
        config: the names.
        source: what messages call the rows.
        needs_references: whether a source without references is refused.
        order: the languages of `translation`, source first; empty where their order means nothing.

    Raises:
        UserError: a column is missing; the message lists the existing ones.
    """
    present = _names(head)
    config = _as_spelled(config, present)
    is_there = {name for name in present} | {
        name for name in _configured(config) if any(cell(row, name) is not None for row in head)
    }
    id_column = config.id_column
    if id_column != ID and not has_column(head, id_column):
        raise _missing("data.id_column", id_column, head, source, config)
    if id_column == ID and ID not in present:
        id_column = next((name for name in OTHER_IDS if name in present), ID)
    dialogue, turn = config.dialogue_column, config.turn_template
    if needs_references and dialogue == config.summary_column:
        raise UserError(f"data.summary_column={dialogue!r} is data.dialogue_column too: set one to another")
    references = (
        (config.summary_column,) if isinstance(config.summary_column, str) else tuple(config.summary_column)
    )
    missing = {name for name in references if name not in is_there}
    if dialogue in is_there and not missing:
        if not needs_references and all(_is_empty(cell(row, name)) for row in head for name in references):
            return Columns(dialogue, (), id_column, turn_template=turn)
        return Columns(dialogue, references, id_column, turn_template=turn)
    found = _known(head, present, config, source, needs_references, order)
    if found is not None:
        return Columns(*found, id_column, is_found=True, turn_template=turn)
    if dialogue in is_there and len(missing) == len(references) and not needs_references:
        return Columns(dialogue, (), id_column, turn_template=turn)
    if dialogue not in is_there and (nested := _nested(head, config)):
        remedy, inner = nested
        text = f"data.dialogue_column={dialogue!r}: {source} has the columns {in_words(present, 4)}; {remedy}"
        if inner:
            raise MissingColumn(text, "data.dialogue_column", dialogue, source, present, inner)
        raise UserError(text)
    if dialogue not in is_there:
        is_both = needs_references and len(missing) == len(references)
        error = _missing("data.dialogue_column", dialogue, head, source, config, is_both)
        if hint := "" if CONVERSATIONS in present else _explode_hint(head):
            text = str(error)
            raise UserError(f"{text}{'.' * (text[-1] not in '.?')}{hint}")
        raise error
    raise _missing("data.summary_column", min(missing), head, source, config)


def _names(head: list[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in head for key in row))


def _configured(config: DataConfig) -> Iterable[str]:
    names = config.summary_column
    return (config.dialogue_column, *([names] if isinstance(names, str) else names))


def _as_spelled(config: DataConfig, present: list[str]) -> DataConfig:
    """Return the config with the columns in the Unicode form that the source has them in: é as one or two."""
    forms = {normalize("NFC", name): name for name in present}

    def spelled(name: str) -> str:
        return name if name in present else forms.get(normalize("NFC", name), name)

    names = config.summary_column
    columns = {
        "dialogue_column": spelled(config.dialogue_column),
        "summary_column": spelled(names) if isinstance(names, str) else tuple(map(spelled, names)),
        "id_column": spelled(config.id_column),
    }
    changed = {field: value for field, value in columns.items() if value != getattr(config, field)}
    return config.model_copy(update=changed) if changed else config


def _known(
    head: list[Row],
    present: list[str],
    config: DataConfig,
    source_name: str,
    needs_references: bool,
    order: tuple[str, ...],
) -> tuple[str, tuple[str, ...]] | None:
    """Return the dialogue's column and the references' by known names, or None where not exactly one fits."""
    if (config.dialogue_column, config.summary_column) not in DEFAULTS:
        return None
    numbered = sorted((n for n in present if re.fullmatch(r"summary_?\d+", n)), key=lambda n: (len(n), n))
    if DIALOGUE in present and numbered and SUMMARY not in present:
        return DIALOGUE, tuple(numbered)
    pairs = PAIRS + QUESTIONS
    fits = [
        (source, (target,))
        for source, target in pairs
        if has_column(head, source) and has_column(head, target)
    ]
    if any(source == WITH_CONTEXT for source, _ in fits):
        fits = [(source, target) for source, target in fits if source != QUESTION]
    if not fits and len(found := languages_in(head)) > 1:
        first, second = direction(found, config, source_name, order)
        fits.append((f"{TRANSLATION}.{first}", (f"{TRANSLATION}.{second}",)))
    if MESSAGES in present and DIALOGUE not in present:
        fits.append((MESSAGES, (MESSAGES,)))
    own = (config.dialogue_column, str(config.summary_column))
    renamed = _in_other_case(present) if not fits else {}
    others = {(renamed[a], (renamed[b],)) for a, b in (own, *PAIRS) if a in renamed and b in renamed}
    fits += others
    if len(fits) == 1:
        return fits[0]
    sources = {source for source, _ in pairs if has_column(head, source)}
    sources -= {QUESTION} if WITH_CONTEXT in sources else set()
    sources = sources or {renamed[a] for a, _ in (own, *PAIRS) if a in renamed}
    if not needs_references and not fits and len(sources) == 1:
        return sources.pop(), ()
    return None


def _in_other_case(present: list[str]) -> dict[str, str]:
    """Return the columns by their names in lower case; none where two are equal, or a third is needed."""
    found = {name.lower(): name for name in present}
    is_whole = len(found) == len(present) and not {INSTRUCTION, "context"} & {*found}
    return found if is_whole else {}


def has_column(head: list[Row], name: str) -> bool:
    """Return whether a row has the column, the nested field, or all columns of a template."""
    if inner := BRACES.findall(name):
        return all(has_column(head, column) for column in inner)
    return any(name in row or cell(row, name) is not None for row in head)


def _nested(head: list[Row], config: DataConfig) -> tuple[str, tuple[str, ...]] | None:
    """Return what to set, and the fields to name, where the texts are inside of objects; None where not."""
    names = [*_configured(config)]
    for column, value in ((name, value) for row in head for name, value in row.items()):
        if not isinstance(value, Mapping):
            continue
        if {*names} <= {*value}:
            inner = tuple(f"{column}.{name}" for name in names)
            target = inner[1] if len(inner) == 2 else f"[{', '.join(inner[1:])}]"
            return f"set data.dialogue_column: {inner[0]} and data.summary_column: {target}", inner
        for key, rows in value.items():
            if isinstance(rows, list) and rows and isinstance(rows[0], Mapping) and {*names} <= {*rows[0]}:
                return f"set data.json_field: {column}.{key}", ()
    return None


def _explode_hint(head: list[Row]) -> str:
    """Return what to set where a column holds a list of objects that are no turns."""

    def rows_in(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
        lists = [(name, found) for name, found in row.items() if isinstance(found, list) and found]
        firsts = [(name, found[0]) for name, found in lists if isinstance(found[0], Mapping)]
        return [(name, first) for name, first in firsts if not {*SPEAKERS, *TEXTS} & {*first}]

    for name, item in (pair for row in head for pair in rows_in(row)):
        paths = (name, *(f"{name}.{other}" for other, _ in rows_in(item)[:1]))
        outer, *inner = (path if path.isprintable() else repr(path) for path in paths)
        more = "".join(f", or {path} for the list inside it" for path in inner)
        return f" If each row holds several examples, set data.explode: {outer}{more}"
    return ""


def _delimiter_in(head: str) -> str | None:
    """Return what separates the names in a header that was read as one name; None if nothing does."""
    marks = dict.fromkeys(mark for mark in ",;|\t" + head if not (mark.isalnum() or mark in "_ -.#'\""))
    return next((mark for mark in marks if mark in head), None)


def _missing(
    option: str, name: str, head: list[Row], source: str, config: DataConfig, is_both: bool = False
) -> UserError:
    """Return the error of a missing column, with the existing ones and what to write.

    Args:
        option: the field that names the column.
        name: the column.
        head: the first rows.
        source: what messages call the rows.
        config: the names.
        is_both: whether the other column of the texts is missing too.
    """
    present = _names(head)
    if any(len(column) > LONGEST_NAME or LIKE_TEXT.search(column) for column in present):
        first = min(present, key=len)
        return UserError(
            f"{option}={name!r}: {source} has texts such as {first[:40]!r} where the names of columns should "
            "be; if the header is missing, set data.column_names, such as [id, dialogue, summary]"
        )
    text = f"{option}={name!r}: {source} has the columns {in_words(present)}."
    if len(present) == 1 and (mark := _delimiter_in(present[0])):
        return UserError(f"{text} Set data.delimiter: {mark!r}")
    text += did_you_mean(name, present)
    if CONVERSATIONS in present and option != "data.id_column":
        return UserError(
            f"{text} Rename the column to {MESSAGES}, with objects {{role, content}} that end with the "
            "assistant's"
        )
    fits = [pair for pair in PAIRS if {*pair} <= {*present}]
    targets = {target for _, target in (*PAIRS, *DEFAULTS)}
    likely = _likely(head, present, config, targets)
    if len(fits) > 1 and config.dialogue_column == DIALOGUE and config.summary_column == SUMMARY:
        likely = fits[0]
        pairs = " or ".join(" and ".join(pair) for pair in fits)
        text += f" Several pairs of columns fit: {pairs}. Choose: "
        text += f"data: {{dialogue_column: {likely[0]}, summary_column: {likely[1]}}}"
    elif len(present) == 2 and option != "data.id_column" and not text.endswith("?"):
        if all(map(str.isidentifier, present)):
            first, second = likely
            text += f" If they are the source and the target, set data.dialogue_column: {first} and "
            text += f"data.summary_column: {second}"
            is_clear = (second in targets) != (first in targets) or (first in SOURCES) != (second in SOURCES)
            text += "" if is_clear else ", or the other way round"
    elif is_both and likely:
        first, second = likely
        text += f" Name both, such as {as_typed(f'data.dialogue_column={first}')} "
        text += as_typed(f"data.summary_column={second}")
    elif is_both and len(present) == 1:
        text += " Two are needed, the text and its target"
    elif not text.endswith("?"):
        text += f" Set {option} to the right one"
    return MissingColumn(text, option, name, source, present, likely)


def _likely(
    head: list[Row], present: list[str], config: DataConfig, targets: Collection[object]
) -> tuple[str, ...]:
    """Return the two columns that may be the input and the target; empty where there are fewer.

    The first is the one of nearly the right name. Of two columns, usual names decide, else the longest texts.
    Dates, numbers and codes come last.
    """
    near = get_close_matches(config.dialogue_column, present, n=1, cutoff=0.5)
    known = [column for column in present if column not in (ID, config.id_column, *OTHER_IDS)]
    are_two = len(present) == 2

    def order(column: str) -> tuple[bool, bool, bool, bool, bool, int]:
        texts = [str(row.get(column) or "") for row in head]
        has_words = any(WORDS.search(text) for text in texts)
        has_letters = any(re.search(r"[^\W\d_]", text) for text in texts)
        named = column not in near, are_two and column in targets, are_two and column not in SOURCES
        return not has_words, not has_letters, *named, -max(map(len, texts))

    return tuple(sorted(present if are_two else known, key=order)[:2]) if are_two or len(known) > 1 else ()
