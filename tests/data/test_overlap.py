"""Dialogues that stand in more than one split are counted before training, held and streamed."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.inputs import shared_data

import lora_hf
from lora_hf.config import DataConfig, ModelConfig, RunConfig
from lora_hf.data import streaming
from lora_hf.data.examples import Example
from lora_hf.data.overlap import dialogue_key, dialogue_keys, shared_dialogues
from lora_hf.data.prepare import load_data
from lora_hf.data.splits import load_split
from lora_hf.models.load import load_tokenizer

NONE = "no dialogue is in more than one split"


def dialogues(start: int, n: int) -> list[str]:
    return [f"Ann: Is it number {i}?\nBen: Yes, it is." for i in range(start, start + n)]


def write(folder: Path, **splits: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, texts in splits.items():
        rows = [{"id": f"{split}{i}", "dialogue": text, "summary": "Yes."} for i, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def said(folder: Path, caplog: pytest.LogCaptureFixture, **fields: Any) -> list[tuple[str, str]]:
    """Level and text of what a run says of the splits."""
    caplog.clear()
    data = {"dataset_name": str(folder), **fields}
    task = data.pop("task", "summarization")
    with caplog.at_level("DEBUG", logger="lora_hf"):
        load_data(RunConfig.model_validate({"task": task, "data": data}), load_tokenizer(ModelConfig()))
    records = [r for r in caplog.records if " also in " in r.getMessage() or r.getMessage() == NONE]
    return [(record.levelname, record.getMessage().split(". Remedy")[0]) for record in records]


@pytest.mark.parametrize("streams", [False, True])
def test_equal_dialogues_in_two_splits_are_a_warning_before_training(
    streams: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "WINDOW", 16)  # the shared ones are beyond the first window
    train = dialogues(0, 40)
    folder = write(tmp_path / "d", train=train, validation=dialogues(100, 10), test=train[-5:])
    expected = (
        "5 of 5 test dialogues (100.0%) are also in train, whitespace and case ignored: test0, test1, test2 "
        "and 2 more"
    )
    assert said(folder, caplog, streaming=streams) == [("WARNING", expected)]


def test_a_few_are_said_and_none_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, validation, test = dialogues(0, 5), dialogues(10, 5), dialogues(1000, 101)
    folder = write(tmp_path / "d", train=train, validation=validation, test=test)
    assert said(folder, caplog) == [("DEBUG", NONE)]
    write(folder, test=[train[0], *test[1:]])
    (first,) = said(folder, caplog)
    assert first[0] == "INFO" and first[1].startswith("1 of 101 test dialogues (1.0%) are also in train")
    write(folder, test=[train[0], *test[1:100]])  # one of a hundred
    assert [level for level, _ in said(folder, caplog)] == ["WARNING"]
    told = said(folder, caplog, task="question_answering")[0]
    assert told[1].startswith("1 of 100 test questions (1.0%) are also in train")
    write(folder, test=[validation[0], *test[1:]])
    assert "also in validation" in said(folder, caplog)[0][1]


def test_the_results_of_a_run_keep_the_warning(tmp_path: Path) -> None:
    train = dialogues(0, 8)
    folder = write(tmp_path / "d", train=train, validation=dialogues(100, 2), test=train[:2])
    run = {"method": "base", "output_dir": str(tmp_path / "run"), "generation": {"max_new_tokens": 3}}
    result = lora_hf.train(run | {"data": {"dataset_name": str(folder)}})
    (warning,) = result["data_warnings"]
    assert warning.startswith("2 of 2 test dialogues (100.0%) are also in train")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["data_warnings"] == [warning]


def test_texts_of_a_retention_task_that_are_trained_on_are_said(tmp_path: Path) -> None:
    train = dialogues(0, 8)
    folder = write(tmp_path / "d", train=train, validation=dialogues(100, 2), test=dialogues(200, 2))
    write(tmp_path / "kept", test=train[:2])
    task = {"task": "summarization", "data": {"dataset_name": str(tmp_path / "kept")}}
    run = {"method": "base", "output_dir": str(tmp_path / "run"), "generation": {"max_new_tokens": 3}}
    run |= {"retention": {"before": task}, "data": {"dataset_name": str(folder)}}
    (warning,) = lora_hf.train(run)["data_warnings"]
    assert warning.startswith("2 of 2 retention before dialogues (100.0%) are also in train")


def test_the_limits_of_a_run_decide_what_is_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = dialogues(0, 40)
    folder = write(tmp_path / "d", train=train, validation=dialogues(100, 10), test=train[-5:])
    assert said(folder, caplog, max_train_samples=20) == [("DEBUG", NONE)]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("A: Hi.\nB: Bye.", "A: Hi. \r\nB:  Bye.\n", True),  # T5 reads both as the same tokens
        ("A: Hi.\nB: Bye.", "a: hi.\nb: BYE.", True),
        ("A: Hi\u00a0Bob.", "A: Hi Bob.", True),
        ("A: ﬁne…", "A: fine...", True),  # compatibility characters
        ("\ufeffA: Hi\u200e\x01", "A: Hi", True),  # T5's tokenizer drops them
        ("A: Hi.", "A: Hi!", False),
        ("A: Hi.", "B: Hi.", False),
    ],
)
def test_whitespace_and_case_make_no_other_dialogue(one: str, other: str, is_same: bool) -> None:
    assert (dialogue_key(one) == dialogue_key(other)) == is_same


def test_a_million_keys_of_a_stream_take_eight_megabytes_and_no_set_of_them_is_made() -> None:
    keys = dialogue_keys(str(i) for i in range(1000))
    assert keys.itemsize * len(keys) == 8000
    once = iter(keys)  # read once, one by one
    (found,) = shared_dialogues(once, "train", {"test": [Example("a", "7", ()), Example("b", "x", ())]})
    assert found.ids == ("a",) and not list(once)


def test_a_stream_from_the_hub_is_compared_as_far_as_it_was_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = dialogues(0, 40)
    folder = write(tmp_path / "d", train=train, validation=dialogues(100, 10), test=[train[3], train[30]])
    monkeypatch.setattr(streaming, "WINDOW", 16)
    monkeypatch.setattr(streaming, "is_on_hub", lambda config: True)
    monkeypatch.setattr(streaming, "public_info", lambda *named: None)
    monkeypatch.setattr("lora_hf.data.prepare.check_steps", lambda *given: None)
    ((level, text),) = said(folder, caplog, streaming=True)
    assert level == "WARNING"
    assert "1 of 2 test dialogues (50.0%) are also in the first 16 rows of train" in text


def test_dialogsum_repeats_training_dialogues_with_other_spaces() -> None:
    data = DataConfig(dataset_name=str(shared_data("dialogsum")))
    train, validation, test = (load_split(data, split) for split in ("train", "validation", "test"))
    keys = dialogue_keys(example.dialogue for example in train)
    found = shared_dialogues(keys, "train", {"validation": validation, "test": test})
    assert [(f.split, f.earlier, len(f.ids), f.is_fault) for f in found] == [
        ("validation", "train", 47, True),
        ("test", "train", 1, False),
        ("test", "validation", 7, True),
    ]
