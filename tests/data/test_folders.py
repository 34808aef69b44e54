"""The files of each split in a folder, and what is taken from train where a split is missing."""

import json
import logging

import pytest
from support.shapes import COLUMN_SHAPES, FOLDERS, PARALLEL

from lora_hf.config import DataConfig
from lora_hf.data.folders import find_files
from lora_hf.data.sources import local_files
from lora_hf.data.splits import SPLITS, load_split, load_split_and_origin
from lora_hf.data.streaming import train_source
from lora_hf.errors import UserError

ROWS = [{"dialogue": f"A: Number {i}?", "summary": f"{i}."} for i in range(200)]


def write(folder, *names, rows=ROWS):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def dialogues(folder, split, **fields):
    return {e.dialogue for e in load_split(DataConfig(dataset_name=str(folder), **fields), split)}


@pytest.mark.parametrize("name", ["test.xlsx", "val.zip", "test.csv.zip", "test/rows.xls", "dev.pkl"])
def test_a_split_in_a_file_that_cannot_be_read_is_refused_unless_it_is_there_too(name, tmp_path):
    write(tmp_path, "train.jsonl")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    hidden = tmp_path / ".venv" / "validation" / "test.zip"
    hidden.parent.mkdir(parents=True)
    hidden.write_bytes(b"x")
    for split in SPLITS:
        with pytest.raises(
            UserError, match=rf"{file.name} is named like the split \w+, .*; (save|unpack|write)"
        ):
            dialogues(tmp_path, split)
    write(tmp_path, "test.jsonl" if "test" in name else "validation.jsonl", rows=ROWS[:5])
    assert len(dialogues(tmp_path, "train")) > 100


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["train-2.jsonl", "train-10.jsonl", "dev.csv"], ["train-2.jsonl", "train-10.jsonl"]),
        (["x_training.jsonl", "x_testing.jsonl"], ["x_training.jsonl"]),
        (["train.jsonl", "train2.jsonl", "old/train.jsonl"], ["train.jsonl"]),  # the name itself wins
        (["data/train/b.jsonl", "data/train/a.jsonl"], ["data/train/a.jsonl", "data/train/b.jsonl"]),
        ([".git/train.jsonl", "train_val.jsonl", "trained.jsonl", "my-train.jsonl"], ["my-train.jsonl"]),
    ],
)
def test_files_are_found_by_the_words_in_their_names_and_shards_keep_their_order(tmp_path, names, train):
    found = find_files(write(tmp_path, *names), "train")["train"]
    assert [file.relative_to(tmp_path).as_posix() for file in found] == train


@pytest.mark.parametrize("names", [["a.train.jsonl", "b.train.jsonl"], ["x.train.csv", "x.train.jsonl"], []])
def test_two_files_that_are_not_shards_are_not_guessed_between(tmp_path, names):
    with pytest.raises(UserError, match="must hold one train file") as error:
        find_files(write(tmp_path, *names), "train")
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["rows.zip", ".DS_Store"], "none of its files can be read: rows.zip; unpack it"),
        (["a.xlsx"], "none of its files can be read: a.xlsx; save the sheet as csv (UTF-8)"),
        (["train.source", "train.target"], "set data.parallel_files: [source, target], source first"),
        (["notes.md"], "none of its files can be read: notes.md"),
        (["talks.tgz"], "none of its files can be read: talks.tgz; unpack it"),
        (
            ["train-00000-of-00002.jsonl", "train-00001-of-00002.csv"],
            "data.data_files: {train: [train-00000-of-00002.jsonl, train-00001-of-00002.csv]}",
        ),
    ],
)
def test_a_folder_of_other_files_names_them_and_what_makes_rows_of_them(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError) as error:
        find_files(tmp_path, "train")
    assert str(error.value).endswith(expected)


def test_runs_reports_and_models_in_the_folder_of_the_data_are_no_data(tmp_path):
    file = write(tmp_path, "talks.jsonl") / "talks.jsonl"
    run = ("config.yaml", "inputs.json", "training.json", "predictions.jsonl", "adapter/adapter_config.json")
    for place in ("run", "both/lora", "."):  # the last one by overwrite=true
        write(tmp_path / place, *run)
    write(tmp_path / "both", "comparison.json", "comparison.md")
    write(tmp_path / "evaluation", "results.json", "predictions.jsonl")
    write(tmp_path / "training", "config.json", "tokenizer.json", "model.safetensors")
    assert find_files(tmp_path, "train") == {"train": [file]}
    assert local_files(DataConfig(dataset_name=str(tmp_path))) == [file]
    config = DataConfig(dataset_name=str(tmp_path / "run"))
    with pytest.raises(UserError, match="run' holds what lora-hf wrote .*; give the file or the folder of"):
        load_split(config, "train")
    own = write(tmp_path / "own", "inputs.json", "training.json")  # names alone are anyone's
    assert find_files(own, "train") == {"train": [own / "training.json"]}


@pytest.mark.parametrize("more", [[], ["test.jsonl"], ["dev.jsonl"]])
def test_a_missing_split_is_taken_from_train_by_dialogue_and_said(tmp_path, more, caplog):
    copies = [row | {"dialogue": f"a:  number {i}?"} for i, row in enumerate(ROWS)]
    write(tmp_path, *more)
    write(tmp_path, "train.jsonl", rows=ROWS + copies)
    with caplog.at_level(logging.DEBUG, "lora_hf"):
        parts = {split: dialogues(tmp_path, split) for split in SPLITS}
    taken = [split for split in SPLITS if split == "train" or len(parts[split]) != 200]
    assert len(taken) == 3 - len(more)
    keys = [{d.lower().replace(" ", "") for d in parts[split]} for split in taken]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 200  # no copy is in two
    assert all(f"[{split}]: " in caplog.text for split in taken) and "data.split_seed=0" in caplog.text
    other = dialogues(tmp_path, taken[-1], split_seed=1)
    assert other and other != parts[taken[-1]]
    streamed = train_source(DataConfig(dataset_name=str(tmp_path), streaming=True))
    assert {row["dialogue"] for row in streamed.rows()} == parts["train"]


def test_a_split_seed_divides_one_file_in_another_way_and_0_as_ever(tmp_path):
    file = write(tmp_path, "all.jsonl") / "all.jsonl"
    first = dialogues(file, "test")
    assert first == dialogues(file, "test", split_seed=0) != dialogues(file, "test", split_seed=7)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("column", "names", "expected"),
    [
        ("split", ["train", "dev", "test"], "'split' (dev, test, train) is not read"),
        ("Data_Split", ["train", "test"], "'Data_Split' (test, train) is not read"),
        ("split", ["train"], ""),
        ("split", ["a", "test"], ""),
        ("result", ["train", "test"], ""),
    ],
)
def test_a_column_that_names_the_split_of_each_row_is_not_ignored_in_silence(
    column, names, expected, streaming, tmp_path, caplog
):
    rows = [row | {column: names[i % len(names)]} for i, row in enumerate(ROWS)]
    file = write(tmp_path, "all.jsonl", rows=rows) / "all.jsonl"
    if streaming:
        train_source(DataConfig(dataset_name=str(file), streaming=True))
    else:
        dialogues(file, "test")
    assert bool(caplog.text) is bool(expected) and expected in caplog.text


def test_shares_of_the_splits_are_fields_and_recorded(tmp_path):
    file = write(tmp_path, "all.jsonl") / "all.jsonl"
    config = DataConfig(dataset_name=str(file), validation_share=0.3, test_share=0.2, split_seed=5)
    parts = {split: load_split_and_origin(config, split) for split in SPLITS}
    assert [len(part.examples) for part in parts.values()] == [95, 57, 48]  # never others
    assert parts["validation"].origin == (
        "about 30 % of all.jsonl, by a hash of the text (data.split_seed=5)"
    )
    folder = write(tmp_path / "folder", "train-1.jsonl", "train-2.jsonl", "test.jsonl")
    config = DataConfig(dataset_name=str(folder), validation_share=0.5)
    assert load_split_and_origin(config, "train").origin == (
        "about 50 % of train-1.jsonl, train-2.jsonl, by a hash of the text (data.split_seed=0)"
    )
    assert load_split_and_origin(config, "test").origin == "test.jsonl"


@pytest.mark.parametrize(
    ("files", "sizes"),
    [
        ({"train": "a.jsonl", "val": ["b/*.jsonl"], "test": "c.jsonl"}, (200, 400, 200)),
        (["a.jsonl", "c.jsonl"], (160, 20, 20)),  # about; both are for training
    ],
)
def test_files_of_each_split_are_named_by_the_config(tmp_path, files, sizes, monkeypatch):
    write(tmp_path, "a.jsonl", "b/1.jsonl", "c.jsonl")
    write(tmp_path, "b/2.jsonl", rows=[{"dialogue": f"B: {i}", "summary": "."} for i in range(200)])
    found = {split: dialogues(tmp_path, split, data_files=files) for split in SPLITS}
    assert all(abs(len(found[split]) - size) < 16 for split, size in zip(SPLITS, sizes, strict=True))
    monkeypatch.chdir(tmp_path)
    assert {e.dialogue for e in load_split(DataConfig(data_files=files), "test")} == found["test"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train": "a.jsonl", "test": "z.jsonl"}, "data.data_files.test='z.jsonl': no such file"),
        ({"train": "z*.jsonl"}, "data.data_files.train='z\\*.jsonl' matches no file in "),
        ({"test": "a.jsonl"}, "names test and no train; add train: FILE"),
    ],
)
def test_a_file_that_data_files_names_and_is_missing_is_one_error(tmp_path, files, words):
    write(tmp_path, "a.jsonl")
    with pytest.raises(UserError, match=words):
        dialogues(tmp_path, "test", data_files=files)


def test_an_error_in_a_shard_names_its_file_and_line(tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    for number, last in ((1, "A: Hi,Hi."), (2, "A: Hi,")):
        (folder / f"train-{number}.csv").write_text(f'dialogue,summary\n"A: {number}\nB: 2",2.\n{last}\n')
    with pytest.raises(UserError, match=r"rows \[4\] \(train-2.csv, line 4: summary is empty\)"):
        dialogues(folder, "train")
    (folder / "train-2.csv").write_text("dialogue,summary\n\nA: Hi,Hi.\nA: Hi,Hi.,more\n")
    with pytest.raises(UserError, match=r"csv/train-2.csv, line 4: more cells than the 2 columns \(3, sep"):
        dialogues(folder, "train")


ALIKE = [shape for shape in FOLDERS if shape.outcome == "read" and shape.name[:5] not in ("saved", "named")]


@pytest.mark.parametrize("shape", ALIKE, ids=lambda shape: shape.name)
def test_the_files_of_each_split_are_those_that_datasets_finds(shape, tmp_path):
    from datasets.data_files import DataFilesDict, get_data_patterns

    folder = shape.write(tmp_path)
    there = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    expected = {str(split): sorted(files) for split, files in there.items()}
    assert {split: list(map(str, files)) for split, files in find_files(folder, "train").items()} == expected


@pytest.mark.parametrize(
    ("names", "fields", "words"),
    [
        (
            ["train.jsonl", "val.jsonl"],
            {"validation_share": 0.2},
            "the data has a validation split of its own",
        ),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], {"split_seed": 3}, "the data has all splits of its own"),
        (["train.jsonl"], {"delimiter": ";"}, "none of the files ends in .csv, .tsv; remove it"),
        (["train.jsonl"], {"json_field": "rows"}, "none of the files ends in .json; remove it"),
    ],
)
def test_a_field_that_nothing_reads_is_refused(tmp_path, names, fields, words):
    with pytest.raises(UserError, match=f"^data.{next(iter(fields))}=.* has no effect: {words}"):
        dialogues(write(tmp_path, *names), "train", **fields)


def test_the_embedded_sample_has_no_form_and_no_shares():
    for fields in ({"encoding": "cp1252"}, {"test_share": 0.3}):
        with pytest.raises(UserError, match="has no effect"):
            load_split(DataConfig.model_validate(fields), "train")


def test_a_file_that_is_not_used_is_named(tmp_path, caplog):
    for name in ("train.csv", "test.csv", "notes.csv"):
        (tmp_path / name).write_text("dialogue,summary\n" + "".join(f"A: {i},B\n" for i in range(40)))
    with caplog.at_level("INFO", "lora_hf"):
        load_split(DataConfig(dataset_name=str(tmp_path)), "train")
    assert "not used, because their names say no split: notes.csv (data.data_files)" in caplog.text


def test_a_file_beside_one_with_exactly_the_split_s_name_is_not_used(tmp_path, caplog):
    folder = write(tmp_path, "train.jsonl", "train/a.jsonl", "dev.jsonl", "test.jsonl")
    with caplog.at_level("INFO", "lora_hf"):
        dialogues(folder, "train")
    assert "not used, because train is read from train.jsonl: train/a.jsonl" in caplog.text


def test_a_pattern_in_the_place_of_a_folder_names_the_field_for_patterns(tmp_path):
    folder = write(tmp_path, "a-train.jsonl", "b-train.jsonl")
    with pytest.raises(UserError) as error:
        dialogues(folder / "*.jsonl", "train")
    assert f"give a pattern as data.data_files: {{train: '{folder}/*.jsonl'}}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("dev", "remove dev.jsonl, and a share of"), ("train", "add rows with texts to it, or give other data")],
)
def test_a_split_without_rows_has_a_remedy(tmp_path, name, remedy):
    folder = write(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl")
    (folder / f"{name}.jsonl").write_text("")
    with pytest.raises(UserError, match=f"has no rows; {remedy}"):
        dialogues(folder, "validation" if name == "dev" else name)


def test_parallel_files_are_read_line_by_line_and_both_belong_to_the_data(tmp_path):
    shape = next(shape for shape in COLUMN_SHAPES if shape.name == "parallel/")
    folder = shape.write(tmp_path)
    config = DataConfig(dataset_name=str(folder), **PARALLEL)
    first, second = load_split(config, "validation")[:2]
    assert (second.dialogue, second.references) == ("Ann: Number 1\u2028?", ("Nummer 1\u2028?",))
    assert len(local_files(config)) == 6
    assert (len(train_source(config).keys), first.id) == (40, "0")
    (folder / "test.de").unlink()  # a test split without references is only predicted
    assert load_split_and_origin(config, "test").origin.startswith("validation, because test has no")
    with (folder / "train.de").open("a") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match="number of lines: 40 in .*train.en, 41 in .*train.de"):
        load_split(config, "train")
    (folder / "train.de").unlink()
    with pytest.raises(UserError, match=r"parallel_files=.'en', 'de'.: .*train.en has no train.de beside"):
        load_split(config, "train")
    with pytest.raises(
        UserError, match="must hold one train file .train.nl.; none of its files can be read: test.en"
    ):
        load_split(DataConfig(dataset_name=str(folder), parallel_files=["nl", "en"]), "train")
