"""A training split that is read while it is trained on: the rows of one that is held, in another order."""

import csv
import json
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from lora_hf.config import DataConfig, RunConfig
from lora_hf.data import streaming as stream
from lora_hf.data.prepare import load_data
from lora_hf.data.sampler import EpochSampler
from lora_hf.data.splits import load_split
from lora_hf.data.streaming import StreamedDialogues, load_train
from lora_hf.errors import UserError
from lora_hf.models.load import EMBEDDED, locate

ROWS = [
    {"dialogue": f"Ann: {'so ' * (i % 7)}is it {i}? Bob: yes.", "summary": f"It is {i}."} for i in range(53)
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(locate(EMBEDDED))


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", 16)


def write(folder, kind, rows=ROWS):
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        file = folder / f"{split}.{kind}"
        if kind == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif kind == "json":
            file.write_text(json.dumps(rows))
        elif kind == "csv":
            with file.open("w", newline="") as out:
                writer = csv.DictWriter(out, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return folder


def held(name, tokenizer, **fields):
    return load_train(DataConfig(dataset_name=str(name), **fields), tokenizer)[0]


def streamed(name, tokenizer, **fields):
    return held(name, tokenizer, streaming=True, **fields)


def in_order(rows):
    return sorted(map(repr, rows))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_rows_of_a_split_that_is_held(kind, tmp_path, tokenizer):
    folder = write(tmp_path / "data", kind)
    ours, theirs = streamed(folder, tokenizer), held(folder, tokenizer)
    assert isinstance(ours, StreamedDialogues) and len(ours) == len(theirs) == 53
    assert in_order(ours) == in_order(theirs.rows)
    assert len(ours.rows) == len(ours.target_lengths) == 16  # the first window


def test_the_embedded_sample_and_a_single_file_are_streamed(tmp_path, tokenizer):
    file = write(tmp_path / "data", "jsonl") / "train.jsonl"
    for name, fields in ((EMBEDDED, {"max_train_samples": 40}), (file, {}), (file, {"max_train_samples": 9})):
        ours, theirs = streamed(name, tokenizer, **fields), held(name, tokenizer, **fields)
        assert in_order(ours) == in_order(theirs.rows) and len(ours) == len(theirs)


def test_validation_and_test_are_read_only_up_to_their_limits(tmp_path):
    rows = [{"dialogue": f"A: {i // 2}?", "summary": f"{i}."} for i in range(20)]
    folder = write(tmp_path / "data", "jsonl", rows)
    with (folder / "test.jsonl").open("a") as file:
        file.write("broken\n")
    given = {"dataset_name": str(folder), "streaming": True}
    found = load_split(DataConfig(**given, max_test_samples=3), "test")
    assert [example.references for example in found] == [("0.", "1."), ("2.", "3."), ("4.", "5.")]
    with pytest.raises(UserError, match=r"test.jsonl, line 21: not json"):
        load_split(DataConfig(**given), "test")


@pytest.mark.parametrize("is_grouped", [False, True])
def test_processes_share_the_batches_that_one_would_have_and_an_epoch_has_its_own_order(
    is_grouped, tmp_path, tokenizer
):
    folder = write(tmp_path / "data", "jsonl")

    def rows_of(rank, world, epoch):
        rows = streamed(folder, tokenizer)
        rows.share(partial(shared, rank, world), 8, is_grouped)
        rows.set_epoch(epoch)
        found = list(map(repr, rows))
        assert len(found) == len(rows)
        return found

    def shared(rank, world, n, lengths):
        return EpochSampler(n, 5, 8, lengths, rank, world)

    one, two = rows_of(0, 1, 1), [rows_of(rank, 2, 1) for rank in range(2)]
    for at in range(0, 53, 8):
        parts = [part[at // 2 : at // 2 + 4] for part in two]
        assert sorted(parts[0] + parts[1]) == sorted(one[at : at + 8])
    assert one == rows_of(0, 1, 1) and one != rows_of(0, 1, 2)
    assert sorted(one) == sorted(rows_of(0, 1, 2)) == in_order(streamed(folder, tokenizer))
    assert sorted(one[:16]) == in_order(streamed(folder, tokenizer).rows)  # a window at a time


def test_an_invalid_row_is_reported_by_number_before_training(tmp_path, tokenizer):
    folder = write(tmp_path / "data", "jsonl", [*ROWS[:40], {"dialogue": "A: yes?", "summary": " "}])
    with pytest.raises(UserError, match=r"\[train\], row 41.* have an empty dialogue or summary"):
        streamed(folder, tokenizer)
    with pytest.raises(UserError, match="data.dialogue_column='text'.*has the columns"):
        streamed(folder, tokenizer, dialogue_column="text")
    with pytest.raises(UserError, match="no such file or folder"):
        streamed(tmp_path / "none", tokenizer)
    (folder / "train.jsonl").write_text("")
    with pytest.raises(UserError, match="no rows belong to the split train"):
        streamed(folder, tokenizer)


def test_other_data_have_another_fingerprint(tmp_path, tokenizer):
    def fingerprint(rows):
        folder = write(tmp_path / "data", "jsonl", rows)
        config = RunConfig.model_validate(
            {"data": {"dataset_name": str(folder), "streaming": True}, "output_dir": "x"}
        )
        return load_data(config, tokenizer).fingerprint

    changed = [*ROWS[:-1], ROWS[-1] | {"summary": "Another."}]
    assert fingerprint(ROWS) == fingerprint(ROWS) != fingerprint(changed)


def test_a_hub_dataset_is_streamed_and_needs_max_steps(tmp_path, tokenizer, monkeypatch):
    import datasets

    folder, asked = write(tmp_path / "data", "jsonl"), []

    class Splits(dict):
        def __getitem__(self, split):
            asked.append(split)
            return map(json.loads, (folder / f"{split}.jsonl").read_text().splitlines())

    def as_streaming_dataset():
        return Splits.fromkeys(("train", "validation", "test"))

    builder = SimpleNamespace(hash="c" * 40, as_streaming_dataset=as_streaming_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *names, **options: builder)
    monkeypatch.setattr("lora_hf.data.hub_dataset.find_dataset", lambda *given: ("c" * 40, None, []))
    monkeypatch.setattr("lora_hf.data.streaming.public_info", lambda *given: None)
    config = {"data": {"dataset_name": "somebody/talks", "streaming": True}, "output_dir": "x"}
    with pytest.raises(UserError, match=r"training.max_steps"):
        load_data(RunConfig.model_validate(config), tokenizer)
    data = load_data(RunConfig.model_validate(config | {"training": {"max_steps": 20}}), tokenizer)
    assert {*asked} == {"train", "validation", "test"}
    with pytest.raises(TypeError):
        len(data.train)
    rows = iter(data.train)
    twice = [repr(next(rows)) for _ in range(2 * 53)]  # it begins again by itself
    assert sorted(twice[:53]) == sorted(twice[53:])


def test_a_stream_that_ends_early_is_an_error(monkeypatch):
    import datasets

    def rows():
        yield ROWS[0]
        raise ConnectionError("the other side has gone")

    def as_streaming_dataset():
        return {split: rows() for split in ("train", "validation", "test")}

    builder = SimpleNamespace(hash="c" * 40, as_streaming_dataset=as_streaming_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *names, **options: builder)
    monkeypatch.setattr("lora_hf.data.hub_dataset.find_dataset", lambda *given: ("c" * 40, None, []))
    config = DataConfig(dataset_name="somebody/talks", streaming=True)
    with pytest.raises(UserError, match="somebody/talks.*did not load: the other side has gone"):
        load_split(config, "test")


def test_the_librarys_own_state_loses_rows_of_a_shuffled_stream_and_ours_none(tmp_path, tokenizer):
    """Why a streamed split keeps its own position: `datasets` refills its shuffle buffer after a resume."""
    from datasets import load_dataset

    folder = write(tmp_path / "data", "jsonl")

    def stream_of_library():
        rows = load_dataset("json", data_files=str(folder / "train.jsonl"), split="train", streaming=True)
        return rows.shuffle(seed=1, buffer_size=16)

    whole = [row["summary"] for row in stream_of_library()]
    first = stream_of_library()
    begun = [row["summary"] for row in islice(first, 24)]
    rest = stream_of_library()
    rest.load_state_dict(first.state_dict())
    resumed = [row["summary"] for row in rest]
    assert begun == whole[:24] and len(whole) == len(ROWS) > len({*begun, *resumed})
    ours = list(map(repr, streamed(folder, tokenizer)))
    assert list(map(repr, islice(streamed(folder, tokenizer), 24, None))) == ours[24:]
