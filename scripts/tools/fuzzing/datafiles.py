"""Broken files of dialogues, read by each command that reads one."""

import json
from pathlib import Path
from random import Random
from typing import Any

from lora_hf import cli
from scripts.tools.fuzzing.junk import VALUES, break_bytes, deep
from scripts.tools.fuzzing.trial import OUT

ROWS = [
    {"id": str(n), "dialogue": f"Anna: Lunch at {n}?\nBen: Yes, at the cafe.", "summary": f"They eat at {n}."}
    for n in range(40)
]
FORMATS = ("jsonl", "jsonl", "json", "csv", "csv", "parquet", "txt")
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "cp500", "utf-7", "utf-8-sig")
FEW = [
    *("generation.max_new_tokens=2", "data.max_train_samples=4", "data.max_eval_samples=2"),
    *("data.max_test_samples=2", "training.max_steps=1", f"output_dir={OUT}"),
]


def make(random: Random, folder: Path, whole: Path) -> list[str]:
    """Write a broken file, and give the words of the command that reads it."""
    form = random.choice(FORMATS)
    rows: list[Any] = [dict(row) for row in ROWS]
    how = random.randrange(6)
    if how == 0:
        _change_cells(random, rows)
    elif how == 1:
        rows = _other_rows(random, rows)
    file = folder / f"data.{form}"
    data = _bytes_of(random, rows, form)
    if how == 2:
        data = break_bytes(random, data)
    elif how == 3 and form != "parquet":
        data = data.decode().encode(random.choice(ENCODINGS))
    elif how == 4:
        data = random.choice(_others())
    elif how == 5:
        rows[random.randrange(len(rows))]["dialogue"] = random.choice(("a", "a b ", "\n")) * 8_000_000
        data = _bytes_of(random, rows, form)
    file.write_bytes(data)
    verb = random.choice(("score", "predict", "predict", "evaluate", "train"))
    if form == "txt":
        verb = "predict"
    if verb == "score":
        return ["score", str(file), "--prediction", "summary", "--reference", "dialogue"]
    if verb == "predict":
        return ["predict", str(file), "--adapter", str(whole / "lora"), "--output", f"{OUT}/lines.jsonl"]
    output = ["--output", OUT] if verb == "evaluate" else []
    return [verb, "--config", "quickstart", f"data.dataset_name={file}", *FEW, *output]


def run(words: list[str]) -> int:
    """The exit status of the command."""
    return cli.run(words, debug=False)


def _change_cells(random: Random, rows: list[Any]) -> None:
    for _ in range(random.choice((1, 3, len(rows)))):
        row = random.choice(rows)
        row[random.choice(("dialogue", "summary", "id"))] = random.choice(VALUES)


def _other_rows(random: Random, rows: list[Any]) -> list[Any]:
    column = random.choice(("dialogue", "summary", "id"))
    missing = [{key: cell for key, cell in row.items() if key != column} for row in rows]
    some = [*rows[:5], *missing[5:]]
    more = [*rows[:5], *({**row, "more": 1} for row in rows[5:])]
    return random.choice(
        ([], missing, some, more, [*rows, 7], [[1]], ["x"], [None], [{}], rows[:1], rows * 100)
    )


def _bytes_of(random: Random, rows: list[Any], form: str) -> bytes:
    if form == "parquet":
        return _parquet(rows)
    if form == "txt":
        return str(rows[0]["dialogue"] if rows and isinstance(rows[0], dict) else rows).encode(
            "utf-8", "replace"
        )
    if form == "csv":
        cells = [row if isinstance(row, dict) else {"dialogue": row} for row in rows]
        lines = [
            ",".join(f'"{row.get(name, "")}"' for name in ("id", "dialogue", "summary")) for row in cells
        ]
        text = "\n".join(["id,dialogue,summary", *lines])
    elif form == "json":
        text = json.dumps(rows)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=random.random() < 0.5) for row in rows)
    return text.encode("utf-8", "surrogatepass")


def _parquet(rows: list[Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    try:
        table = pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        parquet.write_table(table, sink)
    except (
        pyarrow.ArrowException,
        UnicodeEncodeError,
        OverflowError,
        TypeError,
    ):  # mixed types are no column
        parquet.write_table(pyarrow.table({"dialogue": [1.5] * 9, "summary": [[1]] * 9}), sink)
    return bytes(sink.getvalue())


def _others() -> list[bytes]:
    """What is no data at all."""
    return [
        *(
            b"",
            b"\n\n\n",
            b"\xef\xbb\xbf",
            b"\0" * 100,
            b" " * 1000,
            b"PAR1PAR1",
            b"PAR1" + b"\xff" * 60 + b"PAR1",
        ),
        *(deep(100_000, False).encode(), deep(100_000, True).encode(), b'{"dialogue": ' + b"9" * 5000 + b"}"),
        *(b'{"dialogue": "a", "summary": "\\ud800"}\n', b'{"dialogue": "\\u0000", "summary": "b"}\n'),
        *(
            b"id,dialogue,summary\n1,a\n",
            b'id,dialogue,summary\n1,"a',
            b"dialogue,dialogue\na,b\n",
            b"\x80\x04K\x01.",
        ),
        *(
            b'{"dialogue": NaN, "summary": Infinity}\n',
            b"id,dialogue,summary\r1,a,b\r",
            b'{"dialogue": "a"}{"b":1}',
        ),
    ]
