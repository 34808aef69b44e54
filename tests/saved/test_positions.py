"""Saved adapters on a base with few positions: recorded lengths are kept to, and missing ones are lowered."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.families import make_family
from support.letters import letters
from support.models import randomize
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lora_hf import LoraConfig, inject_adapters, save_adapter
from lora_hf.baselines import add_prompt, save_extras
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.errors import UserError
from lora_hf.evaluation.retention import load_retention
from lora_hf.models.load import load_model
from lora_hf.saved import evaluate as evaluating
from lora_hf.saved import inference
from lora_hf.saved import merge as merging
from lora_hf.saved.evaluate import evaluate
from lora_hf.saved.find_adapter import find_adapter
from lora_hf.saved.inference import load
from lora_hf.saved.merge import merge
from lora_hf.saved.predict import predict
from lora_hf.system import pick_device

TALK = "Anna: Lunch at noon? Tom: Yes, at the usual place. " * 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART of 64 positions."""
    folder = tmp_path_factory.mktemp("base")
    make_family("Bart").save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose files have no settings of a run, as PEFT writes it."""
    model = load_model(ModelConfig(model_name_or_path=str(base)), pick_device())
    randomize(inject_adapters(model, LoraConfig(r=2, lora_alpha=8)))
    folder = save_adapter(model, tmp_path_factory.mktemp("adapter"))
    (folder / "lora_hf.json").unlink()
    return folder


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No model is loaded."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model is loaded")

    for module, name in (
        (merging, "load_with_base"),
        (inference, "load_model"),
        (evaluating, "load_model"),
    ):
        monkeypatch.setattr(module, name, fail)
    yield


def talk(folder: Path) -> Path:
    (file := folder / "talk.txt").write_text(TALK)
    return file


def test_lengths_that_nobody_set_are_lowered_to_the_model_s_positions(
    base: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    says = (
        "no embeddings for further positions: sources are cut to 64 tokens and at most 64 tokens are written"
    )
    with caplog.at_level(logging.INFO, "lora_hf"):
        (row,) = predict(talk(tmp_path), str(adapter), None)
        merge(str(adapter), tmp_path / "merged", None, None)
    assert caplog.text.count(says) == 1
    assert load(adapter).generate([TALK]) == [row["prediction"]] == load(tmp_path / "merged").generate([TALK])
    assert caplog.text.count(str(base) + " has no embeddings") == 1  # of its adapter, not of the base too
    assert load(base).generate([TALK])
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert plain.generation_config.max_new_tokens == 64
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    plain.generate(**tokenizer("hi", return_tensors="pt"), min_new_tokens=64)


@pytest.mark.usefixtures("unloaded")
def test_lengths_that_are_set_beyond_them_are_refused_before_a_model_is_loaded(
    adapter: Path, tmp_path: Path
) -> None:
    long = {"max_new_tokens": 100}
    for call in (
        lambda: merge(str(adapter), tmp_path / "merged", None, None, long),
        lambda: predict(talk(tmp_path), str(adapter), None, generation=long),
    ):
        with pytest.raises(UserError, match=r"^generation\.max_new_tokens=100 \(at most 64\): .* no embed"):
            call()
    assert not (tmp_path / "merged").exists()


@pytest.mark.usefixtures("unloaded")
def test_virtual_tokens_of_an_adapter_take_positions(base: Path, tmp_path: Path) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(base)), pick_device())
    add_prompt(model, 10, "random")
    folder = save_extras(model, tmp_path / "adapter", {"max_source_length": 60, "prompt": "plain"})
    says = r"^data\.max_source_length=60 \(at most 54\).* 10 of its 64 positions are for virtual tokens"
    with pytest.raises(UserError, match=says):
        predict(talk(tmp_path), str(folder), None)
    config = {"max_source_length": 60, "max_test_samples": 1}
    run = RunConfig(model={"model_name_or_path": str(base)}, data=config, generation={"max_new_tokens": 4})
    with pytest.raises(UserError, match=says):
        evaluate(run, find_adapter(str(folder)))


def test_further_tasks_are_compared_with_the_positions_by_their_texts(base: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"dialogue": TALK, "summary": "Lunch."}))
    data = {"dataset_name": str(tmp_path / "test.jsonl"), "prompt": "plain"}
    model = {"model_name_or_path": str(base)}
    run = RunConfig(model=model, retention={"t": {"data": data}})
    with pytest.raises(UserError, match=r"^retention\.t: data\.max_source_length=\d+ \(at most 64\)"):
        load_retention(run, letters())
    run = RunConfig(model=model, retention={"t": {"data": data | {"max_source_length": 64}}})
    assert load_retention(run, letters())
