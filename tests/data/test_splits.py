"""Dialogues from the package, files, folders and the Hub: the same examples, and each mistake named."""

import csv
import gzip
import json
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.inputs import shared_data

from lora_hf.config import DataConfig
from lora_hf.config.task import SUMMARIZATION, TASKS
from lora_hf.data.examples import Example, data_fingerprint
from lora_hf.data.input_file import read_file
from lora_hf.data.overlap import plain_text
from lora_hf.data.sources import is_remote
from lora_hf.data.split_names import SPLITS
from lora_hf.data.splits import few_scored, iterate_split, load_split, load_split_and_origin
from lora_hf.errors import UserError

ROWS = [
    {"id": "a1", "dialogue": "A: One?\nB: Yes, \"one\".", "summary": "One."},
    {"id": "b", "dialogue": "A: Two|three?", "summary": "Two, or three."},
    {"id": "a2", "dialogue": "A: One?\nB: Yes, \"one\".", "summary": "B says one."},
]  # fmt: skip
GROUPED = [
    Example("a1", ROWS[0]["dialogue"], ("One.", "B says one.")),
    Example("b", ROWS[1]["dialogue"], ("Two, or three.",)),
]


def write(file, rows=ROWS):
    if file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def config(name, **fields):
    return DataConfig(dataset_name=str(name), **fields)


def numbered(n):
    return [{"id": str(i), "dialogue": f"A: Number {i}?", "summary": f"{i}."} for i in range(n)]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_dialogues_with_their_references_gathered(tmp_path, ending):
    write(tmp_path / f"test.{ending}")
    assert load_split(config(tmp_path), "test") == GROUPED


def test_limits_count_dialogues_and_not_rows(tmp_path):
    write(tmp_path / "test.jsonl", [ROWS[0], ROWS[2], ROWS[1]])
    assert load_split(config(tmp_path, max_test_samples=2), "test") == GROUPED
    assert load_split(config(tmp_path, max_test_samples=1), "test") == GROUPED[:1]


def test_columns_go_by_the_names_of_the_config(tmp_path):
    rows = [{"nr": i, "talk": row["dialogue"], "gist": row["summary"]} for i, row in enumerate(ROWS)]
    write(tmp_path / "test.json", rows)
    named = config(tmp_path, dialogue_column="talk", summary_column="gist", id_column="nr")
    loaded = load_split(named, "test")
    assert [example.id for example in loaded] == ["0", "1"]  # 0 is an id too
    assert [e.references for e in loaded] == [e.references for e in GROUPED]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"dialog": "A: Hi", "summary": "Hi."}],
            "data.dialogue_column='dialogue': {source} [test] has the columns dialog, summary. "
            "Did you mean 'dialog'?",
        ),
        (
            [*ROWS, ROWS[0] | {"summary": "  "}, ROWS[0] | {"dialogue": None}],
            "{source} [test]: 2 of 5 rows have an empty dialogue or summary, or one that is not text; "
            "the first are rows [4, 5] (line 4: summary is empty). "
            "Correct them, or set data.on_bad_row: skip to leave them out",
        ),
    ],
)
def test_a_missing_column_or_an_empty_row_is_an_error_that_names_it(tmp_path, rows, message):
    write(tmp_path / "test.jsonl", rows)
    with pytest.raises(UserError) as error:
        load_split(config(tmp_path), "test")
    assert str(error.value) == message.format(source=tmp_path)


def test_a_single_file_is_split_in_three_by_its_dialogues_and_no_dialogue_is_in_two(tmp_path):
    file = write(tmp_path / "all.jsonl", [*numbered(400), *numbered(40)])
    splits = {split: load_split(config(file), split) for split in ("train", "validation", "test")}
    sizes = {split: len(examples) for split, examples in splits.items()}
    assert sum(sizes.values()) == 400 and 280 < sizes["train"] < 360
    assert len({example.dialogue for examples in splits.values() for example in examples}) == 400
    more = load_split(config(write(tmp_path / "more.jsonl", numbered(500))), "train")
    assert {e.dialogue for e in splits["train"]} < {e.dialogue for e in more}  # by dialogue, not by place


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("fields", [{}, {"split_seed": 3}, {"test_share": 0.2}])
def test_copies_with_other_spaces_case_or_accents_are_in_one_split(tmp_path, fields, streaming):
    forms = ("A: Café {}?", "a:  CAFÉ {}?", "A: Cafe\u0301\n{}?")
    rows = [{"dialogue": form.format(i), "summary": "B."} for i in range(60) for form in forms[: 1 + i % 3]]
    written = config(write(tmp_path / "all.jsonl", rows), streaming=streaming, **fields)
    homes = {split: [e.dialogue for e in load_split(written, split)] for split in ("validation", "test")}
    homes["train"] = [row["dialogue"] for row in iterate_split(written, "train")]
    assert sum(map(len, homes.values())) == len(rows) and all(homes.values())
    keys = [{plain_text(dialogue) for dialogue in dialogues} for dialogues in homes.values()]
    assert sum(map(len, keys)) == 60 == len(set.union(*keys))


def test_a_file_without_such_copies_is_divided_as_it_always_was(tmp_path):
    written = config(write(tmp_path / "all.jsonl", numbered(60)))
    for split, tenths in {"test": {9}, "validation": {8}}.items():
        old = [
            row["dialogue"]
            for row in numbered(60)
            if sha256(row["dialogue"].encode()).digest()[0] % 10 in tenths
        ]
        assert [example.dialogue for example in load_split(written, split)] == old


def test_a_single_file_is_checked_completely_before_it_is_split(tmp_path):
    rows = numbered(50)
    rows[41]["summary"] = ""
    file = write(tmp_path / "all.csv", rows)
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"the first are rows \[42\]"):
            load_split(config(file), split)
        with pytest.raises(UserError, match="data.dialogue_column='talk': .* has the columns"):
            load_split(config(file, dialogue_column="talk"), split)


def test_a_file_too_short_to_be_split_says_so(tmp_path):
    file = write(tmp_path / "two.jsonl", ROWS[:2])
    with pytest.raises(UserError, match=r"is one file, split 80/10/10 .* none of its rows .2. belongs to"):
        [load_split(config(file), split) for split in ("train", "validation", "test")]


def test_scores_of_few_test_dialogues_come_with_a_warning_and_a_remedy(tmp_path):
    rows = [{"dialogue": f"A: Is it {n}?\nB: Yes.", "summary": f"It is {n}."} for n in range(120)]
    write(tmp_path / "talks.csv", rows)
    for split in SPLITS:
        write(tmp_path / f"{split}.jsonl", rows[: 1 if split == "test" else 60])

    def warning(task=SUMMARIZATION, **fields):
        data = DataConfig(**fields)
        examples, origin, _ = load_split_and_origin(data, "test")
        return few_scored(data, task, len(examples), origin)

    one_file = {"dataset_name": str(tmp_path / "talks.csv")}
    n = len(load_split(DataConfig(**one_file), "test"))
    assert 5 < n < 20
    assert warning(**one_file) == (
        f"the score rests on {n} test dialogues: too few to tell much; give more rows, or a larger "
        "data.test_share"
    )
    assert warning(**one_file, test_share=0.5) == ""
    assert warning(**one_file, max_test_samples=2) == ""  # as asked
    assert warning(TASKS["translation"], dataset_name=str(tmp_path)) == (
        "the score rests on 1 test sentence: too few to tell anything; give more test rows"
    )
    assert warning() == ""


def test_a_folder_without_the_split_says_what_it_holds(tmp_path):
    write(tmp_path / "test.jsonl")
    assert load_split(config(tmp_path), "test") == GROUPED
    with pytest.raises(UserError, match=r"one validation file \(validation.csv, .*it holds \['test.jsonl'\]"):
        load_split(config(tmp_path), "validation")
    (tmp_path / "test.jsonl").unlink()
    write(tmp_path / "train.jsonl")
    write(tmp_path / "train.csv")
    with pytest.raises(UserError, match=r"one train file.*\['train.csv', 'train.jsonl'\]"):
        load_split(config(tmp_path), "train")


@pytest.mark.parametrize("name", ["./none", "/nowhere/data", "~/none-such", "rows.jsonl", "some/deep/folder"])
def test_a_missing_path_is_not_looked_up_on_the_hub(name):
    with pytest.raises(UserError) as error:
        load_split(config(name), "train")
    where = (
        f". The path begins at the current folder, {str(Path.cwd())!r}"
        if name in ("./none", "rows.jsonl", "some/deep/folder")
        else ""
    )
    assert str(error.value) == f"data.dataset_name='{name}': no such file or folder{where}"


def test_a_hub_name_that_cannot_be_reached_says_what_works_without():
    with pytest.raises(UserError) as error:
        load_split(config("nobody/no-such-dialogues"), "train")
    message = str(error.value)
    assert message.startswith("data.dataset_name='nobody/no-such-dialogues' [train] did not load: ")
    assert "'embedded'" in message and "\n" not in message


class Builder:
    """A repository as `datasets` reads it: rows by split, at the commit `hash`."""

    def __init__(self, rows, commit="c" * 40):
        self.rows, self.hash, self.info = rows, commit, SimpleNamespace(splits=None)

    def download_and_prepare(self):
        pass

    def as_dataset(self, split):
        return self.rows


def test_a_hub_dataset_is_asked_for_by_its_name_configuration_and_revision(monkeypatch):
    import datasets

    asked, commits = [], ["c" * 40, "d" * 40]

    def load_dataset_builder(*names, **options):
        asked.append((names, options))
        return Builder(ROWS, commits.pop(0))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr("lora_hf.data.hub_dataset.find_dataset", lambda *given: ("c" * 40, None, []))
    named = config("some/dialogues", dataset_config="en", dataset_revision="abc")
    assert load_split(named, "validation") == GROUPED
    assert asked == [(("some/dialogues", "en"), {"revision": "abc"})]
    with pytest.raises(UserError, match="the local copy is of another commit, ddd.*; rerun the command"):
        load_split(named, "validation")


def test_the_embedded_sample_needs_no_file_and_a_limit_takes_its_first_dialogues():
    ten = load_split(config("embedded", max_train_samples=10), "train")
    assert ten[:4] == load_split(config("embedded", max_train_samples=4), "train")
    assert len(load_split(config("embedded", max_eval_samples=3), "validation")) == 3


@pytest.mark.parametrize(
    ("limits", "sizes", "fingerprint"),
    [
        ((None, None, None), (10_000, 500, 500), "83a8a816172bd3ee"),
        ((4000, 100, 200),) * 2 + ("da247ad421a1a9bf",),
    ],
)
def test_the_embedded_sample_never_changes(limits, sizes, fingerprint):
    """Runs record this fingerprint: with another one, every finished run on the sample would be refused."""
    names = ("max_train_samples", "max_eval_samples", "max_test_samples")
    sample = config("embedded", **dict(zip(names, limits, strict=True)))
    splits = [load_split(sample, split) for split in ("train", "validation", "test")]
    assert tuple(map(len, splits)) == sizes
    assert data_fingerprint(*splits) == fingerprint


def test_the_fingerprint_is_of_the_texts_and_of_their_split():
    a, b = GROUPED
    assert data_fingerprint([a], [b]) == data_fingerprint([Example("x", a.dialogue, a.references)], [b])
    different = [data_fingerprint(*s) for s in (([a], [b]), ([a, b], []), ([b], [a]), ([a], [a]))]
    assert len(set(different)) == 4


def test_what_is_only_summarized_keeps_every_row_and_needs_no_references(tmp_path):
    rows = [{"dialogue": row["dialogue"]} for row in ROWS]
    read = read_file(write(tmp_path / "talks.csv", rows), DataConfig())
    assert [(e.id, e.dialogue) for e in read] == [(str(i), row["dialogue"]) for i, row in enumerate(ROWS)]
    with pytest.raises(UserError, match="^--dialogue-column='talk': .*talks.csv has no such column"):
        read_file(tmp_path / "talks.csv", DataConfig(dialogue_column="talk"))


def test_a_text_file_is_one_dialogue(tmp_path):
    file = tmp_path / "talk.txt"
    file.write_text("\ufeffA: Hi\nB: Bye\n", encoding="utf-8")
    assert [example.dialogue for example in read_file(file, DataConfig())] == ["A: Hi\nB: Bye"]
    file.write_text(" \n")
    with pytest.raises(UserError, match="1 of 1 rows have an empty dialogue"):
        read_file(file, DataConfig())


def test_dialogsum_has_500_test_dialogues_of_three_references_each():
    test = load_split(config(shared_data("dialogsum")), "test")
    assert len(test) == 500
    assert {len(example.references) for example in test} == {3}


CSV = "dialogue,summary\n" + "".join(f"A: {i},B {i}\n" for i in range(9))
ONE = {"dialogue": "A", "summary": "B"}
SAID = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "fields", "words"),
    [
        ("u.csv", CSV.encode("utf-16-le"), {}, "set data.encoding: utf-16-le"),
        ("u.jsonl", json.dumps(ONE).encode("utf-16-be"), {}, "set data.encoding: utf-16-be"),
        ("z.csv", gzip.compress(CSV.encode(), mtime=0), {}, "is gzip data: add .gz to its name"),
        ("t.csv.gz", gzip.compress(bytes(257) + b"ustar", mtime=0), {}, "is a tar archive: unpack"),
        ("x.csv", b"PK\x03\x04" + bytes(range(256)), {}, "an Excel sheet: unpack it, or save"),
        ("p.jsonl", b"PAR1\x00", {}, "is a parquet file: rename it to .parquet"),
        ("a.jsonl", json.dumps([ONE]), {}, "and is a list; if the file is one JSON list, rename it to .json"),
        ("b.jsonl", json.dumps([ONE], indent=1), {}, "over several lines, rename it to .json"),
        ("c.json", '[{"dialogue": "A"},\n]', {}, "remove the comma before it"),
        ("d.json", '[{"dialogue": "A", }]', {}, "remove the comma before it"),
        ("q.csv", 'dialogue,summary\n"A,B\n', {}, "a cell that begins with a quote must end with one"),
        ("r.csv", 'dialogue, summary\n"A", "B"\n', {}, "line 2: a quote counts only where a cell begins"),
        ("h.csv", '"dialogue"; "summary"\n"A"; "B"\n', {}, "line 1: a quote counts only where a cell begins"),
        ("l.csv", "# made in May\n" + CSV, {}, "line 2: more cells than the 1 columns (2, "
         "separated by a comma); "
         "if the first line, '# made in May', is not the names of columns, remove it"),
        ("de.csv", "de,en\na,b\n", {}, "set data.dialogue_column: de and data.summary_column: en"),
        ("i.csv", "output,instruction\na,b\n", {}, "dialogue_column: instruction and data."),
        ("v.jsonl", json.dumps({"conversations": SAID}), {}, "Rename the column to messages"),
        ("m.jsonl", json.dumps({"messages": SAID}), {}, "message whose role is assistant"),
        ("n.csv", "A,B\n", {"column_names": ["id", "dialogue", "summary"]}, "data.column_names must"),
        ("s.jsonl", json.dumps(ONE), {}, "another data.split_seed"),
        ("e.csv", CSV, {"dialogue_column": "summary"}, "'summary' is data.dialogue_column too"),
        ("t.jsonl", json.dumps({"context": "A", "question": "", "answer": "B"}),
         {"dialogue_column": "{context}\n\n{question}", "summary_column": "answer"}, "question is empty"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line_with_the_remedy(tmp_path, name, content, fields, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        [load_split(config(tmp_path / name, **fields), split) for split in ("train", "validation", "test")]
    assert words in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) - len(str(tmp_path)) < 500


def test_a_missing_file_is_not_taken_for_a_dataset_of_the_hub():
    assert not is_remote(config("questions.jsonl")) and is_remote(config("questions"))
    for name in ("talks/", "my talks", "a/b/c"):
        assert not is_remote(config(name))
        with pytest.raises(UserError, match=f"'{name}': no such file or folder. The path begins at"):
            load_split(config(name), "train")


def test_rows_that_are_copies_of_one_text_are_said_to_be(tmp_path):
    file = tmp_path / "all.jsonl"
    file.write_text('{"dialogue": "A: Hi", "summary": "A greets."}\n' * 30)
    said = []
    for split in SPLITS:
        try:
            load_split(DataConfig(dataset_name=str(file)), split)
        except UserError as error:
            said.append(str(error))
    assert len(said) == 2 and all("(30, all copies of one text)" in text for text in said)
    assert all("data.validation_share, data.test_share" in text for text in said)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("sep=;\ndialogue;summary\nA, B;C\n", {}),
        ('"sep=;"\r\ndialogue;summary\r\nA, B;C\r\n', {}),
        ("sep=;\nA, B;C\n", {"column_names": ["dialogue", "summary"]}),
        ("\n\ndialogue;summary\nA, B;C\n", {}),
        (' Dialogue ,summary \n"A, B",C\n', {}),
        ('dialogue,summary,,,\n"A, B",C,,,\n', {}),
    ],
    ids=["sep", "quoted", "no header", "blank lines", "spaces", "empty columns"],
)
def test_csv_as_spreadsheets_write_it_is_read(text, fields, tmp_path):
    """A line `sep=;` or blank ones before the header, spaces around names of columns, and empty columns."""
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text(text)
    (row,) = load_split(DataConfig(dataset_name=str(tmp_path), **fields), "test")
    assert (row.dialogue, row.references) == ("A, B", ("C",))


def test_spaces_and_quotes_that_are_inside_of_a_csv_s_quotes_stay(tmp_path):
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text('dialogue,summary\n" ""A, B""","She said, ""C"""\n')
    (row,) = load_split(DataConfig(dataset_name=str(tmp_path)), "test")
    assert (row.dialogue, row.references) == (' "A, B"', ('She said, "C"',))
