"""Any file of dialogues is read back as it was written, or refused by a `UserError`."""

import csv
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.properties import broken, examples, values
from support.selection import slow_except

from lora_hf.config import DataConfig
from lora_hf.data.hub_dataset import CSV_AS_TEXT, no_lost_cells
from lora_hf.data.input_file import read_file
from lora_hf.data.readers import read_rows
from lora_hf.data.splits import SPLITS, load_split
from lora_hf.errors import UserError
from lora_hf.evaluation.score_file import score_file

COLUMNS = ("id", "dialogue", "summary")
Rows = list[dict[str, Any]]
texts = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, st.text(min_size=1))), min_size=1, max_size=5)
anything = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=5), values(), max_size=4) | values(),
    max_size=4,
)


def write_jsonl(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_json(file: Path, rows: list[Any]) -> None:
    file.write_text(json.dumps(rows), encoding="utf-8")


def write_csv(file: Path, rows: Rows) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(file: Path, rows: Rows) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet}
WHOLE = [{"id": f"{n}", "dialogue": f'A: "{n}"?\nB: Yes, é.', "summary": f"{n}."} for n in range(20)]


def is_read_or_refused(file: Path) -> None:
    """Read a file as every command does: in splits, and for its dialogues alone."""
    reads = [lambda split=split: load_split(DataConfig(dataset_name=str(file)), split) for split in SPLITS]
    for read in (*reads, lambda: read_file(file, DataConfig())):
        try:
            found = read()
        except UserError as error:
            message = str(error)
            assert str(file) in message and len(message.splitlines()) == 1
            assert len(message.replace(str(file), "")) <= 500
        else:
            assert found and all(example.dialogue.strip() for example in found)


@pytest.mark.parametrize("form", WRITERS)
@examples(60)
@given(rows=texts)
def test_every_format_gives_the_rows_that_were_written(tmp_path: Path, form: str, rows: Rows) -> None:
    file = tmp_path / f"rows.{form}"
    WRITERS[form](file, rows)
    assert read_rows(file) == rows


@pytest.mark.parametrize("n", slow_except([40], [40, 200]))
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_json_of_any_kind_is_read_or_refused(tmp_path: Path, form: str, n: int) -> None:
    file = tmp_path / f"rows.{form}"

    @examples(n)
    @example(rows=[{"\x1e0": [{}]}])  # a name that breaks the line
    @given(rows=anything)
    def holds(rows: list[Any]) -> None:
        WRITERS[form](file, rows)
        is_read_or_refused(file)
        with suppress(UserError):
            score_file(file, "summary", "dialogue")

    holds()


@pytest.mark.parametrize("n", slow_except([30], [30, 120]))
@pytest.mark.parametrize("form", [*WRITERS, "txt"])
def test_a_broken_file_is_read_or_refused(tmp_path: Path, form: str, n: int) -> None:
    whole, file = tmp_path / f"whole.{form}", tmp_path / f"rows.{form}"
    WRITERS.get(form, write_jsonl)(whole, WHOLE)

    @examples(n)
    @given(data=broken(whole.read_bytes()))
    def holds(data: bytes) -> None:
        file.write_bytes(data)
        is_read_or_refused(file)

    holds()


LIBRARY = (  # file, content, what is read or said here; whether options of `datasets` prevent the change
    ("ids.csv", "dialogue,summary\n007,1e5\n", [{"dialogue": "007", "summary": "1e5"}], True),
    ("comma.csv", "id,dialogue,summary\na,A: Yes, me,It is.\n", "more cells than the 3 columns", True),
    ("page.csv", "<!DOCTYPE html>\n<html>x, y</html>\n", "is a web page", True),
    ("short.csv", "id,dialogue,summary\na,A: Yes\n", "fewer cells than the 3 columns", False),
    ("quotes.csv", 'dialogue,summary\n"A: "Yes"",x\n', "not csv", False),
    ("twice.csv", "dialogue,dialogue\nA,B\n", "more than one column is named 'dialogue'", False),
    ("dates.jsonl", '{"dialogue": "2024-01-01"}\n', [{"dialogue": "2024-01-01"}], False),
    ("large.jsonl", '{"id": 123456789012345678901}\n', [{"id": 123456789012345678901}], False),
)


@pytest.mark.parametrize(
    ("name", "content", "here", "is_avoidable"), LIBRARY, ids=lambda value: str(value)[:9]
)
def test_datasets_changes_texts_that_are_kept_or_refused_here(tmp_path, name, content, here, is_avoidable):
    """Why csv and json have readers of their own: five changes cannot be prevented by any option.

    A row that fails here is one that `datasets` reads well. docs/data.md lists the rows.
    """
    from datasets import Features, Value, load_dataset

    file = tmp_path / name
    file.write_text(content)
    form = "csv" if name.endswith("csv") else "json"

    def there(**options):
        return list(load_dataset(form, data_files=str(file), split="train", streaming=True, **options))

    best = CSV_AS_TEXT if form == "csv" else {"features": Features({next(iter(here[0])): Value("string")})}
    found = there()
    if isinstance(here, list):
        assert read_rows(file) == here != found
        texts = [{key: str(value) for key, value in row.items()} for row in here]
        assert (there(**best) == texts) == is_avoidable
        return
    assert found  # nothing is said of it
    with pytest.raises(UserError, match=here):
        read_rows(file)
    if is_avoidable:
        with pytest.raises(UserError, match="more cells than columns"), no_lost_cells("its file"):
            there(**best)
    else:
        with no_lost_cells("its file"):
            assert there(**best)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_refused_as_in_csv(tmp_path, form):
    import pyarrow
    from pyarrow import ipc, parquet

    names, file = ["dialogue", "summary", "summary"], tmp_path / f"twice.{form}"
    table = pyarrow.Table.from_arrays([pyarrow.array([text]) for text in ("A: Hi", "x", "y")], names=names)
    if form == "parquet":
        parquet.write_table(table, file)
    else:
        with ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(UserError, match="more than one column is named 'summary'"):
        read_rows(file)


ENCODINGS = {
    "big5": "小明，你好嗎",
    "cp1250": "Dzień dobry, żółć",
    "cp1253": "Καλημέρα τι κάνεις",
    "cp1254": "İyi günler ışık",
    "cp1255": "שלום מה שלומך",
    "cp1256": "مرحبا كيف حالك",
    "cp874": "สวัสดีครับ",
    "euc_jp": "田中さん、こんにちは",
    "koi8_r": "Привет как дела",
    "cp932": "田中さん、こんにちは",
    "cp949": "안녕하세요, 언제",
    "gb18030": "小明: 你好吗",
    "mac_roman": "él está aquí",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_readings_of_a_text_that_is_not_utf8_have_the_right_one_and_no_single_one(tmp_path, encoding):
    text = ENCODINGS[encoding]
    file = tmp_path / "talks.csv"
    lines = "".join(f'"{text} {i}","{text}."\n' for i in range(12))
    file.write_bytes(f"dialogue,summary\n{lines}".encode(encoding))
    with pytest.raises(UserError, match="set data.encoding to the right one") as error:
        read_rows(file)
    said = str(error.value)
    assert re.search(f"{re.escape(text[:4])}[^']*' as {encoding}", said), said
    assert " or " in said and "\n" not in said and len(said.replace(str(tmp_path), "")) < 500
