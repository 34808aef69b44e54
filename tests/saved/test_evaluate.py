"""`evaluate` scores an adapter on the base that it was trained on, and reports what differs from training."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from support.letters import letters
from support.models import randomize
from support.selection import slow_except

import lora_hf
from lora_hf import LoraConfig, inject_adapters, save_adapter
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.config.model import ASSETS
from lora_hf.data.prepare import load_data
from lora_hf.data.splits import load_split
from lora_hf.errors import UserError
from lora_hf.models.exported import MARKS
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.saved import evaluate as evaluating
from lora_hf.saved.find_adapter import as_recorded, find_adapter
from lora_hf.saved.source import Source, find_source
from lora_hf.system import pick_device

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "v2": "c" * 40}
SCORED = {"generation": {"max_new_tokens": 4}, "data": {"max_test_samples": 2}}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_model(ModelConfig(), pick_device())
    randomize(inject_adapters(model, LoraConfig(r=4, lora_alpha=10)))
    return save_adapter(model, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def on_hub(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as PEFT writes it, whose base has a main branch and two tags in the Hub's cache."""
    repo = tmp_path / "cache" / "models--me--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "snapshots").mkdir()
    for name, commit in COMMITS.items():
        (repo / "refs" / name).write_text(commit)
        (repo / "snapshots" / commit).symlink_to(ASSETS)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / "lora_hf.json").unlink()
    write(folder, revision="v1")
    return folder


def write(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    raw = json.loads(file.read_text()) | {"base_model_name_or_path": "me/tiny"} | fields
    file.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("recorded", "given", "used", "is_other"),
    slow_except(
        [("v1", None, "v1", False), ("v1", "v2", "v2", True), (None, None, "main", False)],
        [
            ("v1", None, "v1", False),
            ("v1", "v1", "v1", False),
            ("v1", "v2", "v2", True),
            (COMMITS["v2"], "v2", "v2", False),  # as a run records the tag of its config
            (None, None, "main", False),
            (None, "v2", "v2", False),
        ],
    ),
)
def test_the_base_is_scored_at_the_revision_that_the_adapter_was_trained_on(
    recorded: str | None,
    given: str | None,
    used: str,
    is_other: bool,
    on_hub: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = []

    def noted(config: ModelConfig, *args: Any) -> Any:
        model = load_model(config, *args)
        loaded.append(model.config._commit_hash)
        return model

    monkeypatch.setattr(evaluating, "load_model", noted)
    write(on_hub, revision=recorded)
    model = {"model_name_or_path": "me/tiny"} | ({"revision": given} if given else {})
    lora_hf.evaluate(SCORED | {"model": model}, on_hub)
    assert loaded == [COMMITS[used]]
    line = f"model.revision='{given}' is used; the adapter was trained on '{recorded}' of me/tiny"
    assert [text for text in caplog.messages if "trained on" in text] == [line] * is_other


def test_a_revision_of_another_base_is_not_used(on_hub: Path) -> None:
    scores = lora_hf.evaluate(SCORED | {"model": {"model_name_or_path": "embedded"}}, on_hub)
    assert scores["n_examples"] == 2


TRAINED_WITH = {
    "prompt": "tldr",
    "max_source_length": 64,
    "max_new_tokens": 4,
    "generation": {"num_beams": 1},
}


@pytest.fixture
def with_settings(adapter: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(adapter, tmp_path / "with_settings")
    file = folder / "lora_hf.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | TRAINED_WITH))
    return folder


@pytest.mark.parametrize("length", [4, None])
def test_the_inputs_are_reported_as_a_run_reports_them(
    length: int | None,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a length of summaries from the config, and with one from the references of all splits."""
    for split in ("train", "validation", "test"):
        rows = [{"dialogue": f"{split}: is 3 < 4 or not? " * n, "summary": "Yes."} for n in (1, 9)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("lora_hf.saved.find_adapter.load_tokenizer", lambda config: letters())
    data = {"dataset_name": str(tmp_path), "prompt": "~ {dialogue}", "max_source_length": 60}
    config = RunConfig.model_validate({"data": data, "generation": {"max_new_tokens": length}})
    with caplog.at_level("INFO", logger="lora_hf"):
        load_data(config, letters())
        of_run = [text for text in caplog.messages if text.startswith(("test: ", "data.prompt="))]
        caplog.clear()
        result, _ = evaluating.evaluate(config, find_adapter(str(adapter)))
    of_evaluate = [text for text in caplog.messages if text.startswith(("test: ", "data.prompt="))]
    assert of_evaluate == of_run
    cut, unknown, prompt = of_run
    assert "1 of 2 dialogues are cut at 60 tokens" in cut and "'<'" in unknown and "'~'" in prompt
    assert any("'<'" in warning for warning in result["data_warnings"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ""),
        ({"data": {"prompt": "{dialogue}\n\nTL;DR: "}}, ""),  # the text of the shipped prompt
        ({"data": {"prompt": "plain"}}, "data.prompt: 'tldr' -> 'plain'"),
        ({"data": {"max_source_length": 80}}, "data.max_source_length: 64 -> 80"),
        ({"generation": {"max_new_tokens": 5}}, "generation.max_new_tokens: 4 -> 5"),
        (
            {"data": {"max_source_length": 80}, "generation": {"num_beams": 2}},
            "data.max_source_length: 64 -> 80; generation.num_beams: 1 -> 2",
        ),
    ],
)
def test_settings_other_than_those_of_training_are_logged(
    given: dict[str, Any], expected: str, with_settings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"prompt": "tldr", "max_source_length": 64, "max_test_samples": 1} | given.get("data", {})
    lora_hf.evaluate({"data": data, "generation": given.get("generation", {})}, with_settings)
    line = f"the config's settings are used, not the adapter's ({expected})"
    assert [text for text in caplog.messages if "not the adapter's" in text] == [line] * bool(expected)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"split_seed": 7}, ""),
        ({}, "divide the rows as the run did, by data.split_seed=7"),
        ({"test_share": 0.5}, "by data.split_seed=7 data.test_share=0.1"),
        ({"dataset_name": "copy.jsonl", "split_seed": 7, "test_share": 0.3}, "jsonl data.test_share=0.1"),
        ({"dataset_name": "other.jsonl"}, ""),
    ],
)
def test_test_dialogues_that_the_run_was_trained_on_are_said(
    given: dict[str, Any], says: str, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Most of the test dialogues of another division are among those of the training."""
    for name in ("talks", "copy", "other"):
        rows = [{"dialogue": f"A: {n}?", "summary": "Z."} for n in range(60)]
        rows = [row | {"dialogue": f"{row['dialogue']} {name}"} if name == "other" else row for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(adapter, tmp_path / "run/adapter")
    (tmp_path / "run/config.yaml").write_text(
        f"data: {{dataset_name: '{tmp_path}/talks.jsonl', split_seed: 7}}\noutput_dir: run\n"
    )
    name = tmp_path / given.get("dataset_name", "talks.jsonl")
    data = {**given, "dataset_name": str(name)}
    result = lora_hf.evaluate({"data": data, "generation": {"max_new_tokens": 2}}, tmp_path / "run")
    found = [text for text in caplog.messages if "are also in train of its run" in text]
    assert len(found) == bool(says) and all(text.endswith(says) for text in found)
    assert len(result["data_warnings"]) == len(found)


def test_an_adapter_that_does_not_record_its_settings_has_no_others(
    on_hub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora_hf.evaluate(SCORED, on_hub)
    assert "not the adapter's" not in caplog.text


@pytest.mark.parametrize(
    ("rows", "given", "texts"),
    [
        ({"q": "A: Q?", "a": "Q.", "dialogue": "A: D?", "summary": "D."}, {}, ("A: Q?", "Q.")),
        ({"q": "A: Q?", "a": "Q.", "b": "B."}, {"summary_column": "b"}, ("A: Q?", "B.")),
        ({"dialogue": "A: D?", "summary": "D."}, {}, ("A: D?", "D.")),
        (
            {"q": "A: Q?", "a": "Q.", "dialogue": "A: D?", "summary": "D."},
            {"dialogue_column": "dialogue", "summary_column": "summary"},  # the defaults, written out
            ("A: D?", "D."),
        ),
        ({"q": "A: Q?", "a": "Q.", "ticket": "T-1"}, {}, ("A: Q?", "Q.")),
    ],
)
def test_an_adapter_is_scored_by_the_columns_of_its_training_where_the_data_has_them(
    rows: dict[str, str], given: dict[str, str], texts: tuple[str, str], adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    manifest = json.loads((folder / "lora_hf.json").read_text())
    changed = manifest | {"dialogue_column": "q", "summary_column": "a", "id_column": "ticket"}
    (folder / "lora_hf.json").write_text(json.dumps(changed))
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(rows) + "\n")
    data = {"dataset_name": str(tmp_path), **given}
    run = RunConfig.model_validate({**SCORED, "data": data})
    _, (row,) = evaluating.evaluate(run, find_adapter(str(folder)))
    assert (row["dialogue"], *row["references"]) == texts
    assert row["id"] == rows.get("ticket", "0")  # an id is a name alone: data may lack that of the training


@pytest.mark.parametrize(
    ("overrides", "unread"),
    [
        (["lora.r=99", "generation.num_beams=2"], "lora.r=99: no effect here, because {} is scored"),
        (["lora={r: 99}", "training.max_steps=2"], "lora={{r: 99}}, training.max_steps=2: no effect here"),
        (["seed=2", "data.max_target_length=3"], "data.max_target_length=3, seed=2: no effect here"),
        (["model.dtype=float32", "data.max_test_samples=1"], ""),
    ],
)
def test_fields_that_the_saved_adapter_fixes_are_said_to_have_no_effect(
    overrides: list[str], unread: str, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora_hf.evaluate(SCORED, adapter, overrides)
    assert ("no effect here" in caplog.text) is bool(unread)
    assert unread.format(adapter) in caplog.text


def test_a_whole_model_is_not_replaced_by_that_of_the_command_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluating.report_unread(["model.load_in_4bit=true"], find_source("embedded"), RunConfig())
    assert (
        "model.load_in_4bit=true: no effect here, because embedded is scored as it was saved" in caplog.text
    )


def test_an_exported_model_has_no_fast_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / MARKS["onnx"]).touch()
    exported = Source("made", ModelConfig(model_name_or_path=str(tmp_path)))
    evaluating.report_unread(["fast_paths=false", "data.max_eval_samples=3"], exported, RunConfig())
    (said,) = caplog.messages
    assert said.startswith("fast_paths=false: no effect here, because made is scored as it was saved")


@pytest.mark.parametrize(
    ("recorded", "given", "used", "warned"),
    [
        ({"load_in_4bit": True}, {}, "nf4", ""),
        ({"load_in_4bit": True, "quantize_wo": True}, {"dtype": "float32"}, "nf4", ""),
        ({"load_in_4bit": True}, {"load_in_4bit": True}, "nf4", ""),
        (
            {"load_in_4bit": True},
            {"load_in_4bit": False},
            "dense",
            "stored as dense; ",
        ),
        ({}, {"load_in_8bit": True}, "int8", " was trained on it as dense"),
        (
            {"load_in_4bit": True},
            {"load_in_4bit": True, "quantize_wo": True},
            "nf4",
            "as nf4 (quantize_wo=True)",
        ),
        ({}, {}, "dense", ""),
    ],
)
def test_the_base_is_stored_as_in_the_training_unless_the_config_says_otherwise(
    recorded: dict[str, Any],
    given: dict[str, Any],
    used: str,
    warned: str,
    adapter: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    manifest = json.loads((folder / "lora_hf.json").read_text())
    (folder / "lora_hf.json").write_text(json.dumps(manifest | {"base_store": recorded}))
    config = as_recorded(ModelConfig(**given), SavedAdapter.at(folder))
    assert config.storage == used
    assert config.quantize_wo == (given or recorded).get("quantize_wo", recorded.get("quantize_wo", False))
    assert ("can write other texts" in caplog.text) is bool(warned)
    assert warned in caplog.text


@pytest.mark.parametrize("named", ["me/other", "me/tiny"])
def test_another_base_and_tokenizer_than_those_of_a_peft_adapter_are_warned_of(
    named: str, on_hub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(on_hub, base_model_name_or_path=named, revision=None)
    if named == "me/other":
        tokenizer = load_tokenizer(ModelConfig())
        tokenizer.add_tokens(["<turn>"])
        tokenizer.save_pretrained(on_hub)
    lora_hf.evaluate(SCORED | {"model": {"model_name_or_path": "me/tiny"}}, on_hub)
    is_other = named == "me/other"
    text = "model.model_name_or_path='me/tiny' is used; the adapter names its base 'me/other'"
    assert (text in caplog.text) is is_other
    assert ("is not used, but that of the base" in caplog.text) is is_other


def test_an_adapter_is_scored_on_an_int8_base_as_it_is_used_there(adapter: Path) -> None:
    config = RunConfig.model_validate(SCORED)
    scores, rows = evaluating.evaluate(config, find_adapter(str(adapter)), quantization="int8")
    assert scores["quantization"] == "int8"
    test = lora_hf.load(adapter, quantization="int8").generate(
        [row.dialogue for row in load_split(config.data, "test")], max_new_tokens=4
    )
    assert [row["prediction"] for row in rows] == test
    with pytest.raises(UserError, match="quantization='int4' is not one of int8; leave it out for none"):
        evaluating.evaluate(config, None, quantization="int4")
