"""The files of each split in a folder, and what is taken from train where a split is missing."""

import json
import logging

import pytest

from lora_hf.config import DataConfig
from lora_hf.data.folders import find_files
from lora_hf.data.splits import SPLITS, load_split
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
    found, _ = find_files(write(tmp_path, *names), "train")
    assert [file.relative_to(tmp_path).as_posix() for file in found] == train


@pytest.mark.parametrize("names", [["a.train.jsonl", "b.train.jsonl"], ["x.train.csv", "x.train.jsonl"], []])
def test_two_files_that_are_not_shards_are_not_guessed_between(tmp_path, names):
    with pytest.raises(UserError, match="must hold one train file") as error:
        find_files(write(tmp_path, *names), "train")
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize("more", [[], ["test.jsonl"], ["dev.jsonl"]])
def test_a_missing_split_is_taken_from_train_by_dialogue_and_said(tmp_path, more, caplog):
    copies = [row | {"dialogue": f"a:  number {i}?"} for i, row in enumerate(ROWS)]
    write(tmp_path, *more)
    write(tmp_path, "train.jsonl", rows=ROWS + copies)
    with caplog.at_level(logging.INFO, "lora_hf"):
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
