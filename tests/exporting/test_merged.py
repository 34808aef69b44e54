"""Adapters merged for CTranslate2: the tokens of torch, one conversion each, and the base as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.matrix_models import EXAMPLES, Case
from support.selection import slow_except
from support.server_process import DIALOGUES, save_adapters

import lora_hf
from lora_hf import LoraConfig, cli, inject_adapters, replicate_layers, save_adapter, untie_head
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.evaluation.generate import Observer, generate_summaries
from lora_hf.exporting import ctranslate2 as exporting
from lora_hf.exporting.merged import MergedModels
from lora_hf.models.load import load_model
from lora_hf.saved.inference import InferenceModel
from lora_hf.serving.engine import Engine, Job

pytestmark = pytest.mark.skipif(
    not exporting.find_spec("ctranslate2"), reason="the package ctranslate2 is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapters(tmp_path_factory.mktemp("adapters"))


class Tokens(Observer):
    """Keeps what is written for each source."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}

    def output(self, source: int, tokens: list[int]) -> None:
        self.rows[source] = tokens


def randomize(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("row", slow_except(["BART"], ["T5", "mT5", "BART", "mBART", "NLLB", "Pegasus"]))
def test_each_family_writes_what_torch_writes_with_the_adapter(row: str, tmp_path: Path) -> None:
    """Embeddings and head are among the targets, and weights that the converter joins (q, k, v)."""
    case = Case(row, tmp_path)
    model = untie_head(case.load())
    merged = MergedModels(model, case.tokenizer, "float32")
    is_t5 = row in ("T5", "mT5")
    words = ["q", "v", "wo", "shared"] if is_t5 else ["q_proj", "v_proj", "fc1"]
    inject_adapters(model, LoraConfig(r=2, target_modules=[*words, "lm_head"]), "low")
    inject_adapters(model, LoraConfig(r=2, target_modules=words[:3], use_dora=True), "dora")
    randomize(model)
    sources = encode_sources([example.dialogue for example in EXAMPLES], case.tokenizer, case.data).ids

    def written(by: Any, **options: Any) -> list[list[int]]:
        seen, limits = Tokens(), {"min_new_tokens": 12}
        generate_summaries(by, case.tokenizer, sources, 12, observer=seen, **limits, **options)
        return [seen.rows[i] for i in range(len(sources))]

    found: dict[Any, Any] = {}
    for name in ("low", "dora", None, "low"):
        found[name] = written(model, adapters=[name] * len(sources))
        assert written(merged.of(name)) == found[name]
    assert found["low"] != found[None]


def test_only_the_last_adapters_are_kept_and_the_base_is_unchanged(folder: Path) -> None:
    model = lora_hf.load("embedded", engine="ctranslate2", quantization="float32", max_merged=2)
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    plain = InferenceModel(ModelConfig())
    for name in ("a", "b", "dora"):
        model.add_adapter(folder / name, name)
        plain.add_adapter(folder / name, name)
    converted = model._converted
    assert converted is not None and converted.names == []
    for name, kept in (
        ("a", ["a"]),
        ("base", ["a", None]),
        ("a", [None, "a"]),
        ("dora", ["a", "dora"]),
        ("b", ["dora", "b"]),
    ):
        assert model.generate(DIALOGUES, name) == plain.generate(DIALOGUES, name)
        assert converted.names == kept
    base = lora_hf.load("embedded", engine="ctranslate2")  # int8 is made in place, of copies
    base.add_adapter(folder / "a", "a")
    base.generate(DIALOGUES, "a")
    base.generate(DIALOGUES, "base")
    for own in (model, base):
        state = {name.replace(".base_layer", ""): value for name, value in own.model.state_dict().items()}
        assert all(torch.equal(state[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("quantization", slow_except(["int8"], ["int8", "int8_bfloat16"]))
def test_a_merged_adapter_is_the_one_that_the_converter_writes(
    quantization: str, folder: Path, tmp_path: Path
) -> None:
    """The weights that were quantized before are byte for byte those of a conversion of the whole."""
    model = InferenceModel(ModelConfig(), engine="ctranslate2", quantization=quantization)
    assert model._converted
    files = []
    for name in ("b", "a", "b"):
        if name not in model.names:
            model.add_adapter(folder / name, name)
        with model._converted._merged(name):
            (tmp_path / "in-turn").mkdir(exist_ok=True)
            model._converted._converter.write(tmp_path / "in-turn", model.model.generation_config)
            files.append((name, (tmp_path / "in-turn/model.bin").read_bytes()))
    for name, written in files:
        alone = InferenceModel(ModelConfig())
        alone.add_adapter(folder / name, name)
        lora_hf.merge_and_unload(alone.model)
        (tmp_path / "alone").mkdir(exist_ok=True)
        exporting.write_ctranslate2(alone.model, alone.tokenizer, tmp_path / "alone", quantization)
        assert (tmp_path / "alone/model.bin").read_bytes() == written


def test_jobs_of_a_batch_have_one_adapter_and_those_that_fit_are_merged_before(folder: Path) -> None:
    saved = {name: SavedAdapter(folder / name, name) for name in ("a", "b")}
    engine = Engine(ModelConfig(), saved, None, "float32", "ctranslate2", 2)
    torch_engine = Engine(ModelConfig(), saved)
    assert engine._converted and engine._converted.names == ["a", "b"]

    def job(name: str | None) -> Job:
        settings = engine.adapters[name]
        (ids,), _ = engine.encode(settings.data, DIALOGUES[0])
        return Job(name, ids, settings)

    keys = [engine.batch_key(job(name)) for name in ("a", "b", "a", None)]
    assert keys[0] == keys[2] and len(set(keys)) == 3
    for name in ("a", "b", None):
        own, theirs = (by.generate_batch([job(name)] * 2) for by in (engine, torch_engine))
        assert [row.text for row in own] == [row.text for row in theirs]
    engine.add_adapter(folder / "dora", "dora")
    texts = engine.generate_batch([job("dora")])
    del engine.adapters["dora"]
    engine.remove_adapter("dora")
    assert "dora" not in engine._converted.names
    engine.add_adapter(folder / "a", "dora")
    assert engine.generate_batch([job("dora")]) != texts
    engine.close()
    torch_engine.close()


@pytest.mark.slow
def test_adapters_with_layers_of_their_own_are_served_beside_others(folder: Path, tmp_path: Path) -> None:
    """By torch they cannot be mixed in a batch."""
    model = load_model(ModelConfig(), torch.device("cpu"))
    fields: dict[str, Any] = {"target_modules": ["q", "v"], "modules_to_save": ["lm_head"]}
    for number, name in enumerate(("first", "second")):
        inject_adapters(model, LoraConfig(r=2, **fields), name)
        torch.manual_seed(number)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if f".{name}." in key:
                    parameter += 0.1 * torch.randn_like(parameter)
        save_adapter(model, tmp_path, name)
    saved = {name: SavedAdapter(tmp_path / name, name) for name in ("first", "second")}
    engine = Engine(
        ModelConfig(), saved | {"a": SavedAdapter(folder / "a", "a")}, None, "float32", "ctranslate2"
    )
    for name in ("second", "first"):
        plain = InferenceModel(ModelConfig())
        plain.add_adapter(saved[name])
        assert engine.generate(DIALOGUES, name) == plain.generate(DIALOGUES)
    assert engine.generate(DIALOGUES, "first") != engine.generate(DIALOGUES, "second")


def test_what_cannot_be_merged_is_refused_with_a_remedy(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.bin").touch()
    (tmp_path / "lora_hf.json").write_text('{"export": {"config": {}}}')
    for source, options, says in (
        (
            "embedded",
            {"engine": "ctranslate"},
            "engine='ctranslate' is not one of torch, ctranslate2; .* Did",
        ),
        ("embedded", {"engine": "ctranslate2", "max_merged": 0}, "max_merged=0 must be a whole number of at"),
        (
            "embedded",
            {"engine": "ctranslate2", "quantization": "int4"},
            "'int4' is not one of float32, int8, int8_bfloat16; leave it out for int8, the default",
        ),
        ("embedded", {"quantization": "float32"}, "quantization='float32' is not one of int8; leave it out"),
        (tmp_path, {"engine": "ctranslate2"}, "was exported to ctranslate2, which runs it: leave it out"),
    ):
        with pytest.raises(UserError, match=says):
            lora_hf.load(source, **options)
    with pytest.raises(UserError, match="is stored in nf4, and only dense models can be exported to ctransl"):
        InferenceModel(ModelConfig(load_in_4bit=True), engine="ctranslate2")
    other = Case("LED", tmp_path / "led")
    with pytest.raises(
        UserError, match="of type led, which cannot be exported to ctranslate2; these can: t5"
    ):
        InferenceModel(ModelConfig(model_name_or_path=str(other.base)), engine="ctranslate2")
    (tmp_path / "a.txt").write_text(DIALOGUES[0])
    for words in (
        ["predict", str(tmp_path / "a.txt"), "--adapter", str(folder / "a")],
        ["serve", "--adapter", f"a={folder / 'a'}", "--port", "0"],
    ):
        assert cli.run([*words, "--engine", "onnx"], debug=False) == 2
        assert "error: --engine 'onnx' is not one of torch, ctranslate2" in capfd.readouterr().err


def test_a_baseline_and_replicated_layers_are_refused(tmp_path: Path) -> None:
    model = replicate_layers(load_model(ModelConfig(), torch.device("cpu")), {"decoder": [[0, 2], [1, 2]]})
    save_adapter(inject_adapters(model, LoraConfig(r=2), "deep"), tmp_path, "deep")
    (tmp_path / "bottleneck").mkdir()
    manifest = {"method": "bottleneck", "weights_sha256": "", "base_model_name_or_path": "embedded"}
    (tmp_path / "bottleneck/lora_hf.json").write_text(json.dumps(manifest))
    model = InferenceModel(ModelConfig(), engine="ctranslate2")
    with pytest.raises(UserError, match="replicates layers of the base: merge it first"):
        model.add_adapter(tmp_path / "deep")
    with pytest.raises(UserError, match="holds a bottleneck, which does not change .*: leave out the engine"):
        model.add_adapter(SavedAdapter(tmp_path / "bottleneck", "bottleneck"))
    assert model.names == []


def test_places_are_for_the_engine_that_merges_and_too_few_are_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for engine in (None, "torch"):
        with pytest.raises(UserError, match="max_merged=2 is for|engine='torch' is not"):
            lora_hf.load(folder / "a", engine=engine, max_merged=2)
    base, saved = ModelConfig(), {name: SavedAdapter(folder / name, name) for name in "ab"}
    for places, warnings in ((3, 0), (2, 1)):
        caplog.clear()
        Engine(base, saved, engine="ctranslate2", max_merged=places).close()
        said = [record.getMessage() for record in caplog.records if "are kept merged" in record.getMessage()]
        assert len(said) == warnings and all(text.startswith("2 of 3 adapters") for text in said)


def test_the_dtype_of_training_is_no_warning_where_the_weights_are_converted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(folder / "a", trained)
    manifest = json.loads((trained / "lora_hf.json").read_text())
    manifest["base_store"] = {"dtype": "bfloat16"}
    (trained / "lora_hf.json").write_text(json.dumps(manifest))
    lora_hf.load(trained, engine="ctranslate2")
    assert not [r for r in caplog.records if "was trained on a base in bfloat16" in r.getMessage()]
