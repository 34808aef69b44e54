"""The shapes in which people have their data, with made-up texts: each is read, or refused with a remedy.

`python tests/support/shapes.py` prints the table of docs/data.md.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lora_hf.data.columns import PAIRS

Row = dict[str, Any]


def row(i: int) -> Row:
    dialogue = f'Ann: Hi Ben, is it number {i}?\nBen: Yes, "promised"; don\'t worry, at {i % 12 + 1}.'
    return {"id": f"r{i}", "dialogue": dialogue, "summary": f"Ben brings number {i}."}


ROWS = [row(i) for i in range(40)]
PARTS = {"train": ROWS[:30], "validation": ROWS[30:35], "test": ROWS[35:]}


def as_csv(rows: list[Row], **options: Any) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def changed(at: int, **cells: Any) -> list[Row]:
    """Return the rows with some cells of one replaced; None takes the cell away."""
    rows = [dict(row) for row in ROWS]
    rows[at] |= cells
    return rows


def to_parquet(rows: list[Row], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def to_arrow(rows: list[Row], path: Path, is_stream: bool) -> None:
    import pyarrow
    from pyarrow import ipc

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file:
        with (ipc.new_stream if is_stream else ipc.new_file)(file, table.schema) as writer:
            writer.write_table(table)


def to_zst(data: bytes, path: Path) -> None:
    import pyarrow

    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)


Remedy = Callable[[Path], tuple[Path, Row]]


def set_fields(**fields: Any) -> Remedy:
    """Return the remedy that only sets fields of `data`."""
    return lambda path: (path, fields)


def written_anew(name: str = "", content: Callable[[bytes], bytes] = lambda old: JSONL) -> Remedy:
    """Return the remedy that writes the file again, under this name or its own."""

    def write(path: Path) -> tuple[Path, Row]:
        new = path.with_name(name or path.name)
        new.write_bytes(content(path.read_bytes()))
        return new, {}

    return write


CSV_ANEW = written_anew(content=lambda old: as_csv(ROWS).encode())


class Shape(NamedTuple):
    """One shape: a file or folder, and what becomes of it."""

    name: str
    """Name of the file; a folder ends in `/`."""
    what: str
    make: Callable[[Path], Any]
    """Write it to a path; the return value is text or bytes of a file, or nothing."""
    outcome: str
    """`read`, or a part of the message that refuses it."""
    fields: Row = {}
    """Fields of `data` with which it is read."""
    remedy: Remedy | None = None
    """Do what the message says; return the file to read, and the fields to read it with."""

    def write(self, folder: Path) -> Path:
        path = folder / self.name.rstrip("/")
        if self.name.endswith("/"):
            path.mkdir(parents=True)
        content = self.make(path)
        if isinstance(content, str):
            path.write_bytes(content.encode())
        elif isinstance(content, bytes):
            path.write_bytes(content)
        return path


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:71043\nsize 530165\n"
JSONL = as_lines(ROWS).encode()
HERE = "가: 안녕, 언제 만날까?\n나: 세 시에 만나자."
KOREAN = [row | {"dialogue": f"{row['dialogue']} {HERE}"} for row in ROWS]
PLAIN_ROWS = [row | {"dialogue": row["dialogue"].replace(",", "").replace(";", "")} for row in ROWS]
CURLY = changed(3, dialogue="Ann: A café – “promised”?")
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}

FILES = [
    Shape("bom.csv", "csv with a byte order mark, as from Excel", lambda p: "\ufeff" + as_csv(ROWS), "read"),
    Shape("semicolon.csv", "separated by semicolons", lambda p: as_csv(ROWS, delimiter=";"), "read"),
    Shape("bar.csv", "separated by vertical bars", lambda p: as_csv(ROWS, delimiter="|"), "read"),
    Shape("tab.csv", "separated by tabs", lambda p: as_csv(ROWS, delimiter="\t"), "read"),
    Shape("tab.tsv", "tsv", lambda p: as_csv(ROWS, delimiter="\t"), "read"),
    Shape("utf16.csv", "UTF-16 with a byte order mark", lambda p: as_csv(ROWS).encode("utf-16"), "read"),
    Shape("utf16.jsonl", "UTF-16 with a byte order mark", lambda p: as_lines(ROWS).encode("utf-16"), "read"),
    Shape("utf32.csv", "UTF-32 with a byte order mark", lambda p: as_csv(ROWS).encode("utf-32"), "read"),
    Shape("blank_lines.csv", "blank lines at the end", lambda p: as_csv(ROWS) + "\n\n\n", "read"),
    Shape("nan_text.csv", "a cell with the text NaN", lambda p: as_csv(changed(7, summary="NaN")), "read"),
    Shape(
        "index.csv", "an extra column `Unnamed: 0`", lambda p: as_csv([{"": "1"} | r for r in ROWS]), "read"
    ),
    Shape("nul.csv", "a NUL in a cell", lambda p: as_csv(ROWS).replace("prom", "pr\0m", 1), "read"),
    Shape(
        "cp1252.csv",
        "Windows-1252",
        lambda p: as_csv(CURLY).encode("cp1252"),
        "line 8, is not",
        remedy=set_fields(encoding="cp1252"),
    ),
    Shape(
        "cp949.csv",
        "Korean in cp949",
        lambda p: as_csv(KOREAN).encode("cp949"),
        "as cp949",
        remedy=set_fields(encoding="cp949"),
    ),
    Shape(
        "caret.csv",
        "separated by another character, `^`",
        lambda p: as_csv(PLAIN_ROWS, delimiter="^"),
        "the columns 'id^dialogue^summary'",
        remedy=set_fields(delimiter="^"),
    ),
    Shape(
        "backslashes.csv",
        'quotes written \\"',
        lambda p: as_csv(ROWS, escapechar="\\", doublequote=False),
        "set data.escapechar: '\\'",
        remedy=set_fields(escapechar="\\"),
    ),
    Shape("list.json", "a list of objects", lambda p: json.dumps(ROWS, indent=1), "read"),
    Shape("lines.json", "json lines under the name .json", lambda p: JSONL, "read"),
    Shape("rows.ndjson", "json lines under the name .ndjson", lambda p: JSONL, "read"),
    Shape("data_key.json", "rows under a key `data`", lambda p: json.dumps({"v": 1, "data": ROWS}), "read"),
    Shape("columns.json", "lists by column", lambda p: json.dumps(COLUMNS), "read"),
    Shape(
        "by_split.json",
        "a key for each split",
        lambda p: json.dumps(PARTS),
        "such as data.json_field: train; to use all of them, write each to a file of its own in one folder",
        remedy=set_fields(json_field="train"),
    ),
    Shape(
        "nested.json",
        "rows under `x.y`, with `json_field: x.y`",
        lambda p: json.dumps({"x": {"y": ROWS}}),
        "read",
        {"json_field": "x.y"},
    ),
    Shape(
        "pandas_default.json",
        "`df.to_json(FILE)`",
        lambda p: json.dumps({k: {str(i): cell for i, cell in enumerate(v)} for k, v in COLUMNS.items()}),
        "read",
    ),
    Shape(
        "commas.jsonl",
        "a comma after each object",
        lambda p: JSONL.replace(b"}\n", b"},\n"),
        "comma: re",
        remedy=written_anew(content=lambda old: old.replace(b"},\n", b"}\n")),
    ),
    Shape(
        "python.jsonl",
        "Python dicts",
        lambda p: "\n".join(map(repr, ROWS)),
        "json.dumps",
        remedy=written_anew(),
    ),
    Shape("rows.csv.gz", "gz", lambda p: gzip.compress(as_csv(ROWS).encode()), "read"),
    Shape("rows.json.gz", "gz", lambda p: gzip.compress(json.dumps(ROWS).encode()), "read"),
    Shape("rows.jsonl.gz", "gz", lambda p: gzip.compress(JSONL), "read"),
    Shape("rows.jsonl.bz2", "bz2", lambda p: bz2.compress(JSONL), "read"),
    Shape("rows.jsonl.xz", "xz", lambda p: lzma.compress(JSONL), "read"),
    Shape("rows.jsonl.zst", "zst", lambda p: to_zst(JSONL, p), "read"),
    Shape(
        "half.jsonl.gz",
        "half of a gz",
        lambda p: gzip.compress(JSONL)[:200],
        "copy it again",
        remedy=written_anew(content=lambda old: gzip.compress(JSONL)),
    ),
    Shape(
        "other.jsonl.gz",
        "not a gz",
        lambda p: JSONL,
        "take away the ending .gz",
        remedy=written_anew("other.jsonl", lambda old: old),
    ),
    Shape(
        "other.jsonl.zst",
        "not a zst",
        lambda p: b"\x28\xb5\x2f\xfd" + b"0" * 50,
        "take away the ending",
        remedy=written_anew("other.jsonl"),
    ),
    Shape("rows.parquet", "parquet", lambda p: to_parquet(ROWS, p), "read"),
    Shape("stream.arrow", "arrow, as `datasets` writes it", lambda p: to_arrow(ROWS, p, True), "read"),
    Shape("file.arrow", "arrow, as a file", lambda p: to_arrow(ROWS, p, False), "read"),
    Shape(
        "rows.xlsx",
        "Excel",
        lambda p: b"PK\x03\x04" + b"0" * 50,
        "save the sheet as csv",
        remedy=written_anew("rows.csv", lambda old: as_csv(ROWS).encode()),
    ),
    Shape("lfs.csv", "a pointer of Git LFS", lambda p: LFS, "git lfs pull", remedy=CSV_ANEW),
    Shape("lfs.jsonl", "a pointer of Git LFS", lambda p: LFS, "git lfs pull", remedy=written_anew()),
    Shape(
        "page.csv",
        "a web page",
        lambda p: "<!DOCTYPE html>\n<html>x, y</html>\n",
        "is a web page",
        remedy=CSV_ANEW,
    ),
]


def folder(
    name: str,
    what: str,
    parts: dict[str, list[Row]],
    outcome: str = "read",
    ext: str = "jsonl",
    fields: Row = {},  # noqa: B006 (never changed)
    remedy: Remedy | None = None,
) -> Shape:
    """Return a folder with a file for each part, under the part's name."""

    def make(path: Path) -> None:
        for part, rows in parts.items():
            file = path / f"{part}.{ext}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if ext == "parquet":
                to_parquet(rows, file)
            elif ext.endswith(".gz"):
                file.write_bytes(gzip.compress(as_lines(rows).encode()))
            else:
                file.write_text(as_csv(rows) if ext == "csv" else as_lines(rows), encoding="utf-8")

    return Shape(f"{name}/", what, make, outcome, fields, remedy)


def with_rows(name: str, rows: list[Row]) -> Remedy:
    """Return the remedy that adds a file to a folder."""

    def write(path: Path) -> tuple[Path, Row]:
        (path / name).write_text(as_lines(rows), encoding="utf-8")
        return path, {}

    return write


def with_mac_files(path: Path) -> None:
    for part, rows in PARTS.items():
        (path / f"{part}.csv").write_text(as_csv(rows), encoding="utf-8")
        (path / f"._{part}.csv").write_bytes(b"\0\5\x16\7")


def saved_to_disk(path: Path, *, is_dict: bool) -> None:
    import datasets

    datasets.disable_progress_bars()
    parts = {name: datasets.Dataset.from_list(rows) for name, rows in PARTS.items()}
    whole = datasets.DatasetDict(parts) if is_dict else datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(path))


def named(*names: str) -> dict[str, list[Row]]:
    return dict(zip(names, PARTS.values(), strict=True))


SHARDS = {"train-00000-of-00002": ROWS[:20], "train-00001-of-00002": ROWS[20:30]}
FOLDERS = [
    folder("val", "`train`, `val` and `test`", named("train", "val", "test"), ext="csv"),
    folder("dev", "`train`, `dev` and `test`", named("train", "dev", "test")),
    folder("valid", "`train`, `valid` and `test`", named("train", "valid", "test"), ext="csv"),
    folder("prefixed", "`dialogsum.train` ...", named(*(f"dialogsum.{name}" for name in PARTS))),
    folder("subfolders", "`train/a`, `val/b` ...", named("train/a", "val/b", "test/c")),
    folder("shards", "shards", {**SHARDS, "validation": PARTS["validation"], "test": PARTS["test"]}),
    folder(
        "half",
        "one of two shards",
        {"train-00001-of-00002": ROWS},
        "holds 1 of the 2 shards of train",
        remedy=with_rows("train-00000-of-00002.jsonl", ROWS),
    ),
    folder("hub", "`data/train-00000-of-00001` ...", named(*(f"data/{n}-0" for n in PARTS)), ext="parquet"),
    folder("gz", "gz", PARTS, ext="jsonl.gz"),
    Shape("macos/", "`._train.csv` beside `train.csv`", with_mac_files, "read"),
    folder("only_train", "only `train`", {"train": ROWS}),
    folder("one_file", "one file of any name", {"dialogues": ROWS}),
    folder("train_test", "`train` and `test`", {"train": ROWS[:30], "test": ROWS[30:]}),
    folder("train_val", "`train` and `validation`", {"train": ROWS[:30], "validation": ROWS[30:]}),
    folder(
        "two",
        "files that name no split",
        {"a": ROWS, "b": ROWS},
        "write data.data_files: {train: a.jsonl}",
        remedy=set_fields(data_files={"train": "a.jsonl"}),
    ),
    folder(
        "named",
        "files by `data_files`",
        {"a": ROWS[:9], "b1": ROWS[9:20], "b2": ROWS[20:]},
        fields={"data_files": {"test": "a.jsonl", "train": "b*.jsonl", "dev": ["a.jsonl"]}},
    ),
    folder("empty", "an empty folder", {}, "must hold one train file", remedy=with_rows("train.jsonl", ROWS)),
    Shape("saved_dict/", "`DatasetDict.save_to_disk`", lambda p: saved_to_disk(p, is_dict=True), "read"),
    Shape("saved_one/", "`Dataset.save_to_disk`", lambda p: saved_to_disk(p, is_dict=False), "read"),
]


def turns(row: Row) -> list[dict[str, str]]:
    return [
        dict(zip(("speaker", "text"), line.split(": ", 1), strict=True))
        for line in row["dialogue"].split("\n")
    ]


def lines_of(
    name: str,
    what: str,
    read: Callable[[Row], Row],
    outcome: str = "read",
    fields: Row = {},  # noqa: B006 (never changed)
    remedy: Remedy | None = None,
) -> Shape:
    return Shape(name, what, lambda p: as_lines(map(read, ROWS)), outcome, fields, remedy)


def pair(source: str, target: str) -> Callable[[Row], Row]:
    return lambda row: {source: row["dialogue"], target: row["summary"]}


def questions(row: Row) -> list[Row]:
    return [{"query": f"Ann: {word}?", "answer": f"{word}, {row['summary']}"} for word in ("What", "When")]


def squad(row: Row) -> Row:
    asked = [
        {"id": f"{row['id']}-{i}", "question": one["query"], "answers": [{"text": one["answer"]}] * 2}
        for i, one in enumerate(questions(row))
    ]
    return {"title": row["id"], "paragraphs": [{"context": row["dialogue"], "qas": asked}]}


PARALLEL = {"parallel_files": ["en", "de"]}


def parallel(path: Path, names: Iterable[str] = ("train", "val", "test")) -> None:
    """Write text files of which line n of one belongs to line n of the other."""
    folder = path if path.is_dir() else path.parent
    for name in names:
        for language, texts in {"en": "Ann: Number {}?\n", "de": "Nummer {}?\r\n"}.items():
            lines = "".join(texts.format(f"{i}\u2028") for i in range(40))
            (folder / f"{name}.{language}").write_bytes(lines.encode())


THREE = ("summary1", "summary2", "summary3")
NO_HEADER = as_csv(ROWS).partition("\r\n")[2]
WITHOUT = [{"id": row["id"], "dialogue": row["dialogue"]} for row in PARTS["test"]]
AS_IS = {
    "dialogsum.train": PARTS["train"],
    "dialogsum.dev": PARTS["validation"],
    "dialogsum.test": [
        {"fname": row["id"], "dialogue": row["dialogue"], **dict.fromkeys(THREE, row["summary"])}
        for row in PARTS["test"]
    ],
}
BAD = "the first are rows [8] (line "
SKIP = set_fields(on_bad_row="skip")
COLUMN_SHAPES = [
    *(
        lines_of(f"{source}_{target}.jsonl", f"columns `{source}` and `{target}`", pair(source, target))
        for source, target in PAIRS
    ),
    lines_of("turns.jsonl", "turns `{speaker, text}`", lambda row: row | {"dialogue": turns(row)}),
    lines_of(
        "by_key.jsonl",
        "turns as lists by key",
        lambda row: (
            row | {"dialogue": {key: [turn[key] for turn in turns(row)] for key in ("speaker", "text")}}
        ),
    ),
    lines_of(
        "own_turns.jsonl",
        "turns with other keys, `{who, said}`",
        lambda row: row | {"dialogue": [{"who": t["speaker"], "said": t["text"]} for t in turns(row)]},
        "has turns with the keys who, said: set data.turn_template, such as '{who}: {said}'",
        remedy=set_fields(turn_template="{who}: {said}"),
    ),
    lines_of(
        "utterances.jsonl", "turns as texts", lambda row: row | {"dialogue": row["dialogue"].split("\n")}
    ),
    lines_of(
        "messages.jsonl",
        "`messages` of a user and an assistant",
        lambda row: {
            "messages": [
                {"role": "user", "content": row["dialogue"]},
                {"role": "assistant", "content": row["summary"]},
            ]
        },
    ),
    lines_of(
        "alpaca.jsonl",
        "`instruction`, `input`, `output`",
        lambda row: {"instruction": "Ann: Sum up.", "input": row["dialogue"], "output": row["summary"]},
    ),
    lines_of(
        "translation.jsonl",
        "`translation` of two languages, the source first",
        lambda row: {"translation": {"en": row["dialogue"], "de": row["summary"]}},
    ),
    lines_of(
        "queries.jsonl",
        "several questions about a meeting in a row, as QMSum has them, with `explode`",
        lambda row: {"meeting": turns(row), "queries": questions(row)},
        fields={
            "explode": "queries",
            "dialogue_column": "{queries.query}\n\n{meeting}",
            "summary_column": "queries.answer",
        },
    ),
    Shape(
        "squad.json",
        "SQuAD as its authors publish it, with `explode: paragraphs.qas`",
        lambda p: json.dumps({"version": "1.1", "data": [squad(row) for row in ROWS]}),
        "read",
        {
            "explode": "paragraphs.qas",
            "dialogue_column": "{paragraphs.context}\n\n{paragraphs.qas.question}",
            "summary_column": "paragraphs.qas.answers.text",
        },
    ),
    Shape(
        "parallel/", "`train.en` and `train.de`, with `parallel_files: [en, de]`", parallel, "read", PARALLEL
    ),
    Shape("moses.en", "one of two parallel text files", lambda p: parallel(p, ["moses"]), "read", PARALLEL),
    lines_of(
        "list.jsonl", "several references in a cell", lambda row: row | {"summary": [row["summary"]] * 2}
    ),
    lines_of(
        "three.jsonl",
        "`summary1`, `summary2`, `summary3`",
        lambda row: {"dialogue": row["dialogue"], **dict.fromkeys(THREE, row["summary"])},
    ),
    lines_of(
        "two_pairs.jsonl",
        "two possible pairs of columns",
        lambda row: pair("article", "highlights")(row) | pair("text", "target")(row),
        "Choose: data: {dialogue_column: article, summary_column: highlights}",
        remedy=set_fields(dialogue_column="article", summary_column="highlights"),
    ),
    Shape(
        "no_header.csv",
        "no header",
        lambda p: NO_HEADER,
        "if the header is missing, set data.column_names, such as [id, dialogue, summary]",
        remedy=set_fields(column_names=["id", "dialogue", "summary"]),
    ),
    Shape(
        "sentences.tsv",
        "sentences without a header",
        lambda p: "".join(f"{i}\tAnn: Is it {i}?\tIst es {i}?\n" for i in range(40)),
        "if the header is missing, set data.column_names",
        remedy=set_fields(column_names=["id", "source", "target"]),
    ),
    Shape("empty.csv", "an empty summary", lambda p: as_csv(changed(7, summary="")), BAD, remedy=SKIP),
    Shape("null.jsonl", "null as a summary", lambda p: as_lines(changed(7, summary=None)), BAD, remedy=SKIP),
    Shape(
        "nan.jsonl",
        "NaN as a summary",
        lambda p: as_lines(changed(7, summary=float("nan"))),
        BAD,
        remedy=SKIP,
    ),
    Shape(
        "number.jsonl", "a number as a summary", lambda p: as_lines(changed(7, summary=42)), BAD, remedy=SKIP
    ),
    Shape(
        "first.jsonl",
        "a first row without a summary",
        lambda p: as_lines([{"id": "x", "dialogue": "Ann: ?"}, *ROWS]),
        "the first are rows [1] (line 1: summary is missing). Correct them",
        remedy=SKIP,
    ),
    folder("no_references", "a test split without references", {**PARTS, "test": WITHOUT}),
    folder("as_is", "DialogSum as its authors publish it", AS_IS),
]
SHAPES = FILES + FOLDERS + COLUMN_SHAPES


def outcome_of(path: Path, **fields: Any) -> str:
    """Return what became of a shape: `read: ...`, or the message that refuses it."""
    from lora_hf.config import DataConfig
    from lora_hf.data.splits import SPLITS, load_split
    from lora_hf.errors import UserError

    config = DataConfig.model_validate({"dataset_name": str(path), **fields})
    try:
        splits = [load_split(config, split) for split in SPLITS]
    except UserError as error:
        return str(error)
    assert all(example.dialogue.startswith("Ann: ") for examples in splits for example in examples)
    return f"read: {', '.join(f'{len(rows)} {name}' for name, rows in zip(SPLITS, splits, strict=True))}"


def table() -> list[str]:
    """Return the table of docs/data.md as lines."""
    lines = ["| file or folder | what it is | outcome |", "|---|---|---|"]
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as name:
            outcome = outcome_of(shape.write(Path(name)), **shape.fields).replace(f"{name}/", "")
        cell = outcome.partition(":")[0] if outcome.startswith("read") else f"refused: {outcome}"
        lines.append(f"| `{shape.name}` | {shape.what} | {cell} |".replace("|'", "'").replace("\x00", ""))
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
