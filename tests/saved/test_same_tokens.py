"""Every path that generates writes the same summaries, on a base that brings settings of its own.

The base's are those of a well-known news summarizer. Only `generation:` may shape a summary: in evaluations
during training, scoring, `predict`, from Python, serving, the demo, and in a merged folder without this
package.
"""

import json
import shutil
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.readme_code import written_by_the_readme
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import lora_hf
from lora_hf import cli
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.config.load import generation_fields, load_config
from lora_hf.config.model import ASSETS
from lora_hf.data.splits import load_split
from lora_hf.demo.models import DemoModels
from lora_hf.errors import UserError
from lora_hf.evaluation import evaluate as evaluation
from lora_hf.models.plain_folder import EXAMPLE
from lora_hf.run_records import read_predictions
from lora_hf.saved.evaluate import evaluate
from lora_hf.saved.find_adapter import base_config, find_adapter
from lora_hf.saved.inference import load
from lora_hf.saved.merge import merge
from lora_hf.saved.predict import predict
from lora_hf.saved.source import find_source
from lora_hf.serving.app import create_app
from lora_hf.serving.engine import Engine
from lora_hf.serving.limits import Limits
from lora_hf.serving.service import Service

HOSTILE = {"max_length": 142, "min_length": 56, "no_repeat_ngram_size": 3, "num_beams": 4}
HOSTILE |= {
    "early_stopping": True,
    "length_penalty": 2.0,
    "repetition_penalty": 3.0,
    "forced_eos_token_id": 5,
}
GREEDY: dict[str, Any] = {"max_new_tokens": 10}
SEARCHED = {"num_beams": 3, "max_new_tokens": 12, "min_new_tokens": 6, "length_penalty": 0.3}
SEARCHED |= {"early_stopping": True, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3}
PROMPT = "Summarize:\n\n{dialogue}\n\nSummary: "


class Trained:
    """A finished run, the summaries that it was scored with, and those of its last evaluation."""

    def __init__(self, folder: Path, base: Path, generation: dict[str, Any], method: str) -> None:
        self.run, self.generation, self.evaluated = folder / "run", generation, []
        examples = load_split(DataConfig(max_test_samples=6), "test")
        dialogues = [{"dialogue": one.dialogue, "summary": one.references[0]} for one in examples]
        (folder / "data").mkdir(parents=True)
        for split in ("train", "validation", "test"):
            lines = "".join(json.dumps(row) + "\n" for row in dialogues)
            (folder / "data" / f"{split}.jsonl").write_text(lines)
        self.file = folder / "data" / "test.jsonl"
        self.config = {
            "method": method,
            "model": {"model_name_or_path": str(base)},
            "lora": {"r": 4, "lora_alpha": 32},
            "data": {"dataset_name": str(folder / "data"), "prompt": PROMPT, "max_source_length": 200},
            "training": {"max_steps": 2, "learning_rate": 5e-2 if method == "lora" else 1e-3, "eval_steps": 2}
            | {"eval_strategy": "steps", "save_strategy": "no", "disable_tqdm": True},
            "generation": generation,
            "output_dir": str(self.run),
        }
        with pytest.MonkeyPatch.context() as patch:
            scored = evaluation.ValidationScores.score

            def noted(of: Any, predictions: list[str], references: list[str]) -> Any:
                self.evaluated.append(sorted(text.strip() for text in predictions))  # rows in another order
                return scored(of, predictions, references)

            patch.setattr(evaluation.ValidationScores, "score", noted)
            lora_hf.train(self.config)
        rows = read_predictions(self.run)
        self.dialogues, self.written = ([row[key] for row in rows] for key in ("dialogue", "prediction"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with generation settings of its own."""
    folder = tmp_path_factory.mktemp("bases") / "summarizer"
    shutil.copytree(ASSETS, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | HOSTILE))
    return folder


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(GREEDY, id="greedy"),
        pytest.param(SEARCHED, id="searched", marks=pytest.mark.slow),
    ],
)
def trained(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"), base, request.param, "lora")


@pytest.fixture(scope="module")
def merged(trained: Trained) -> Path:
    folder = trained.run.parent / "merged"
    merge(str(trained.run), folder, None, None)
    return folder


def by_transformers(folder: Path, dialogues: list[str]) -> list[str]:
    """Return what someone without this package writes with a folder: its prompt, and nothing else said."""
    prompt = json.loads((folder / "lora_hf.json").read_text())["prompt"]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    inputs = [tokenizer(prompt.replace("{dialogue}", one), return_tensors="pt") for one in dialogues]
    tokens = [model.generate(**one)[0] for one in inputs]
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def test_an_evaluation_during_training_writes_what_the_run_is_scored_with(trained: Trained) -> None:
    assert len({*trained.written}) > 1 and trained.evaluated[-1] == sorted(trained.written)


def test_scoring_a_saved_adapter_writes_the_same(trained: Trained) -> None:
    rows = lora_hf.evaluate(trained.config, trained.run)["predictions"]
    assert [row["prediction"] for row in rows] == trained.written


@pytest.mark.slow
def test_scoring_a_whole_model_in_the_place_of_the_config_s_base_writes_the_same(
    trained: Trained, merged: Path
) -> None:
    scores, rows = evaluate(load_config(trained.config), find_source(str(merged)))
    assert [row["prediction"] for row in rows] == trained.written
    assert (scores["adapter"], scores["model"]) == (None, str(merged))


def test_scoring_by_other_settings_is_logged(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    lora_hf.evaluate(trained.config, trained.run, ["generation.num_beams=2", "data.max_test_samples=1"])
    before = trained.generation.get("num_beams", 1)
    assert f"not the adapter's (generation.num_beams: {before} -> 2)" in caplog.text


def test_predict_writes_the_same(trained: Trained) -> None:
    rows = predict(trained.file, str(trained.run), None)
    assert [row["prediction"] for row in rows] == trained.written


def test_generate_writes_the_same_and_its_settings_can_be_replaced(trained: Trained) -> None:
    model = load(trained.run)
    assert model.generate(trained.dialogues) == trained.written
    other = {"num_beams": 2, "max_new_tokens": 20}
    replaced = predict(trained.file, str(trained.run), None, None, other)
    assert [row["prediction"] for row in replaced] == model.generate(trained.dialogues, **other)
    assert model.generate(trained.dialogues, **other) != trained.written


@pytest.mark.slow
def test_serving_writes_the_same(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    saved = find_adapter(str(trained.run))
    with closing(Service(Engine(base_config(saved), {"one": saved}), Limits())) as service:
        client = TestClient(create_app(service))
        asked = [{"dialogue": dialogue, "adapter": "one"} for dialogue in trained.dialogues]
        answers = [client.post("/summarize", json=body).json() for body in asked]
        shorter = client.post("/summarize", json=asked[0] | {"num_beams": 1, "max_new_tokens": 2})
        Service(service.engine, Limits(max_new_tokens=3)).batcher.close()
    assert [answer["summary"] for answer in answers] == trained.written
    assert shorter.status_code == 200
    assert "'one' was trained for summaries of" in caplog.text and "--max-new-tokens 3 cuts" in caplog.text


@pytest.mark.slow
def test_the_demo_writes_the_same(trained: Trained) -> None:
    with closing(DemoModels(trained.run)) as models:
        assert [models.summarize("run", one).summary for one in trained.dialogues] == trained.written


def test_a_merged_folder_writes_the_same_with_and_without_this_package(
    trained: Trained, merged: Path
) -> None:
    assert by_transformers(merged, trained.dialogues) == trained.written
    assert load(merged).generate(trained.dialogues) == trained.written
    rows = predict(trained.file, find_source(str(merged)))
    assert [row["prediction"] for row in rows] == trained.written
    base = ModelConfig(model_name_or_path=str(merged))
    with closing(Service(Engine(base, {}), Limits())) as service:
        client = TestClient(create_app(service))
        answers = [client.post("/summarize", json={"dialogue": one}).json() for one in trained.dialogues]
    assert [answer["summary"] for answer in answers] == trained.written


def test_a_merged_folder_says_how_it_is_used(trained: Trained, merged: Path) -> None:
    settings = json.loads((merged / "generation_config.json").read_text())
    expected = trained.generation | {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    kept = {key: value for key, value in settings.items() if key != "transformers_version"}
    assert kept == {"do_sample": False, "num_beams": 1} | expected
    readme = (merged / "README.md").read_text()
    assert PROMPT in readme and "summarizer with a trained adapter" in readme
    assert len(readme.split("```python\n")[1].split("```")[0].splitlines()) == 5
    dialogues = trained.dialogues[:2]
    assert written_by_the_readme(merged, EXAMPLE, dialogues) == trained.written[:2]
    assert str(merged.parent) not in readme


@pytest.mark.slow
def test_merging_takes_other_settings(trained: Trained, tmp_path: Path) -> None:
    words = ["merge", "--adapter", str(trained.run), "--output", str(tmp_path / "other")]
    assert cli.run([*words, "generation.num_beams=2", "generation.max_new_tokens=20"], debug=False) == 0
    other = load(trained.run).generate(trained.dialogues, num_beams=2, max_new_tokens=20)
    assert by_transformers(tmp_path / "other", trained.dialogues) == other
    with pytest.raises(UserError, match="model: only fields of generation can be replaced here"):
        generation_fields(["generation.num_beams=2", "model.dtype=float32"])


@pytest.mark.slow
def test_a_model_that_was_trained_whole_writes_the_same(base: Path, tmp_path: Path) -> None:
    trained = Trained(tmp_path, base, SEARCHED, "full")
    assert trained.evaluated[-1] == sorted(trained.written)
    assert trained.written == load(trained.run).generate(trained.dialogues)
    assert by_transformers(trained.run / "model", trained.dialogues) == trained.written
    with closing(DemoModels(trained.run)) as models:
        assert [models.summarize("run", one).summary for one in trained.dialogues] == trained.written


@pytest.fixture(scope="module")
def exported(trained: Trained) -> Path:
    """The run of the module for CTranslate2, by the command."""
    pytest.importorskip("ctranslate2", reason="the package ctranslate2 is not installed")
    folder = trained.run.parent / "ct2"
    words = ["export", str(trained.run), "--to", "ctranslate2", "--output", str(folder)]
    with redirect_stdout(StringIO()) as out:
        assert cli.run(words, debug=False) == 0
    if trained.generation == GREEDY:
        assert "6 of 6 texts equal the float32 model's; ROUGE-1" in out.getvalue()
    return folder


def test_an_exported_run_writes_the_same_in_every_command_and_without_this_package(
    trained: Trained, exported: Path
) -> None:
    by_engine = load(exported)
    written = by_engine.generate(trained.dialogues)
    if trained.generation == GREEDY:  # beams end elsewhere: docs/engines.md
        assert written == trained.written
    assert by_engine.description.startswith(f"{exported} in float32 by ctranslate2 on cpu")
    assert [row["prediction"] for row in predict(trained.file, find_source(str(exported)))] == written
    rows = evaluate(load_config(trained.config), find_source(str(exported)))[1]
    assert [row["prediction"] for row in rows] == written
    with closing(Service(Engine(ModelConfig(model_name_or_path=str(exported)), {}), Limits())) as service:
        client = TestClient(create_app(service))
        answers = [client.post("/summarize", json={"dialogue": one}).json() for one in trained.dialogues]
    assert [answer["summary"] for answer in answers] == written
    assert written_by_the_readme(exported, EXAMPLE, trained.dialogues[:2]) == written[:2]
    for name in ("generation_config.json", "lora_hf.json"):
        assert str(trained.generation["max_new_tokens"]) in (exported / name).read_text()


def test_an_exported_folder_says_what_it_is_made_of_and_takes_no_adapter(
    trained: Trained, exported: Path, base: Path, tmp_path: Path
) -> None:
    record = json.loads((exported / "lora_hf.json").read_text())["export"]
    assert (record["base_model_name_or_path"], record["adapter"]) == (str(base), str(trained.run))
    with pytest.raises(UserError, match="was exported to ctranslate2, and no adapter can be loaded on"):
        load(exported).add_adapter(trained.run, "one")
    with pytest.raises(UserError, match="exported to ctranslate2, which only predict, evaluate, serve"):
        lora_hf.train(
            trained.config | {"output_dir": str(tmp_path)}, [f"model.model_name_or_path={exported}"]
        )
    for name in ("model.bin", "tokenizer.json", "config.json"):
        copied = tmp_path / f"other {name}"
        shutil.copytree(exported, copied)
        (copied / name).write_bytes((copied / name).read_bytes() + b" ")
        with pytest.raises(UserError, match=f"{name} is not the file that was exported from {base} with the"):
            load(copied)
    (copied / "model.bin").unlink()
    with pytest.raises(UserError, match="was exported, but it has no model.bin and no encoder_model.onnx"):
        load(copied)


def test_the_settings_of_a_base_that_are_not_used_are_logged_once(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="lora_hf")
    load(trained.run).generate(trained.dialogues)
    said = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert len(said) == 1 and all(f"{name}=" in said[0] for name in HOSTILE)


def test_an_adapter_of_an_older_version_is_greedy(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run / "adapter", tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "lora_hf.json").read_text())
    del manifest["generation"]
    (tmp_path / "old" / "lora_hf.json").write_text(json.dumps(manifest))
    new = load(trained.run)
    neutral = {"num_beams": 1, "min_new_tokens": 0, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0}
    assert load(tmp_path / "old").generate(trained.dialogues) == new.generate(trained.dialogues, **neutral)


def test_a_damaged_manifest_is_one_error(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "lora_hf.json"
    manifest = json.loads(file.read_text())
    for generation, says in (
        (3, "generation=3 is not an object"),
        ({"num_beams": "two"}, "num_beams='two' is not an integer"),
        ({"beams": 2}, "unknown option beams=2"),
        ({"min_new_tokens": 300}, "min_new_tokens=300 is more than generation.max_new_tokens"),
    ):
        file.write_text(json.dumps(manifest | {"generation": generation}))
        with pytest.raises(UserError, match=f"lora_hf.json: {says}"):
            load(tmp_path / "adapter")


def test_a_run_reads_its_settings_again(trained: Trained) -> None:
    config = load_config(trained.run / "config.yaml")
    saved = SavedAdapter(trained.run / "adapter")
    own = config.generation.model_dump(exclude={"batch_size", "batch_tokens", "max_new_tokens"})
    assert saved.manifest["generation"] == own
