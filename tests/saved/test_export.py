"""Exports: what is refused before and after writing, and ONNX graphs by the command, in other hands too."""

import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from support.families import make_family
from support.models import saved

from lora_hf import cli
from lora_hf.config import RunConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.config.schema import GenerationConfig
from lora_hf.data.examples import Example
from lora_hf.errors import UserError
from lora_hf.exporting.onnx import OnnxModel
from lora_hf.saved import export as exporting
from lora_hf.saved.export import Comparison, check_loss
from lora_hf.saved.inference import load
from lora_hf.scores import METRICS

ROUGE = METRICS["rouge"][0]
WRONG = METRICS["ter"][0]


def compared(
    before: float, after: float, equal: int = 200, score: object = ROUGE, p_value: float = 0.01
) -> Comparison:
    return Comparison(200, 1500, equal, score, before, after, p_value)  # type: ignore[arg-type]


def test_an_export_that_loses_too_much_is_refused_unless_it_is_allowed() -> None:
    settings = PredictionSettings()
    check_loss(compared(0.776, 0.7712, 120), "int8", settings)
    lost = compared(0.776, 0.7702, 120)
    with pytest.raises(
        UserError, match=r"more than 0.005 .*first 200 of 1,500 .*ROUGE-1 0.7702, .* 0.7760"
    ) as e:
        check_loss(lost, "int8", settings)
    assert "--allow-loss" in str(e.value)
    check_loss(lost, "int8", settings, allow_loss=True)
    check_loss(compared(0.5, 0.9), "int8", settings)
    lower_is_better = compared(40.0, 41.0, score=WRONG)
    assert lower_is_better.loss == pytest.approx(0.01)


def test_greedy_texts_in_float32_that_differ_are_another_model() -> None:
    other = compared(0.02, 0.02, equal=100)
    with pytest.raises(UserError, match="the export computes another model: .* 100 of 200 texts equal"):
        check_loss(other, "float32", PredictionSettings(), allow_loss=True)
    check_loss(other, "float32", PredictionSettings(generation=GenerationConfig(num_beams=4)))
    check_loss(compared(0.02, 0.02, equal=180), "float32", PredictionSettings())


def test_one_text_of_few_is_reported_and_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The score of eight texts moves by more than 0.005 with any one of them."""
    references = [f"Anna meets Ben at {hour} in the park." for hour in range(8)]
    test = [Example(f"{n}", "Anna: Hi", (one,)) for n, one in enumerate(references)]
    tie = [references[0].replace("Ben", "Tom"), *references[1:]]

    def check(exported: list[str], rows: int = 8) -> Comparison:
        found = exporting._compared(references[:rows], exported[:rows], test[:rows], rows, RunConfig())
        check_loss(found, "int8", PredictionSettings())
        return found

    with caplog.at_level("WARNING", "lora_hf"):
        assert check(references).loss == 0 and not caplog.text  # equal texts never fail
        for rows in (8, 1):
            caplog.clear()
            assert check(tie, rows).loss > 10 * exporting.LARGEST_LOSS / rows
            assert f"1 of {rows} texts differ" in caplog.text and "by chance (p = 1.00)" in caplog.text
    with pytest.raises(UserError, match=r"0 of 8 texts equal .* \(p = 0.0\d+\)"):
        check([one.replace("Ben", "Tom") for one in references])
    for n, equal in ((8, 7), (1, 0)):  # a near tie of float32 too
        check_loss(Comparison(n, n, equal), "float32", PredictionSettings())
    with pytest.raises(UserError, match="another model"):
        check_loss(Comparison(8, 8, 6), "float32", PredictionSettings())


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded, and every package seems to be installed."""

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(exporting, "load_model", fail)


@pytest.mark.usefixtures("unloaded")
def test_what_cannot_be_exported_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "led"
    make_family("LED").save_pretrained(other)
    kept = saved(tmp_path / "t5")
    bottleneck = tmp_path / "bottleneck"
    bottleneck.mkdir()
    manifest = {"method": "bottleneck", "weights_sha256": "", "base_model_name_or_path": "embedded"}
    (bottleneck / "lora_hf.json").write_text(json.dumps(manifest))
    output = str(tmp_path / "out")
    capsys.readouterr()  # progress bars
    for words, says in (
        ([str(other)], "is of type led, which cannot be exported to onnx; these can: t5, mt5"),
        ([str(other), "--to", "ctranslate2"], "type led, which cannot be exported to ctranslate2; these can"),
        (["embedded", "--to", "ctranslate"], "--to 'ctranslate' must be one of ['ctranslate2', 'onnx']. Did"),
        (["embedded", "--quantization", "int4"], "--quantization 'int4' must be one of ['float32', 'int8']"),
        (
            ["embedded", "--quantization", "int8_bfloat16"],
            "must be one of ['float32', 'int8'] with --to onnx",
        ),
        ([str(bottleneck)], "holds a bottleneck, which does not change weights and cannot be exported"),
        ([str(tmp_path / "none")], "no such folder"),
        ([kept.model_name_or_path, "--base", "x"], "--base 'x' is for an adapter"),
    ):
        assert cli.run(["export", *words, "--output", output], debug=False) == 2
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ")
    assert not Path(output).exists()
    (tmp_path / "mine.txt").write_text("x")
    assert cli.run(["export", "embedded", "--output", str(tmp_path)], debug=False) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_folder_of_an_older_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="holds ONNX graphs of an older version, under other names: export"):
        load(tmp_path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The embedded model as the command exports it, and what the command says."""
    pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    folder, said = tmp_path_factory.mktemp("exported") / "onnx", StringIO()
    with redirect_stdout(said):
        assert cli.run(["export", "embedded", "--output", str(folder)], debug=False) == 0
    return folder, said.getvalue()


@pytest.mark.slow
def test_onnx_graphs_are_written_by_the_command_under_the_names_that_others_read(
    exported: tuple[Path, str],
) -> None:
    folder, said = exported
    assert " MiB; 8 of 8 texts of the package's sample equal the float32 model's" in said
    files = {"encoder_model.onnx", "decoder_model_merged.onnx", "config.json", "generation_config.json"}
    assert files < {file.name for file in folder.iterdir()} and (folder / "tokenizer.json").is_file()
    alone = """
import sys, numpy, onnxruntime
encoder, decoder = (onnxruntime.InferenceSession(f"{sys.argv[1]}/{name}.onnx")
                    for name in ("encoder_model", "decoder_model_merged"))
ids = numpy.array([[5, 6, 7, 1]])
hidden = encoder.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0]
past = [state for state in decoder.get_inputs() if state.name.startswith("past_key_values.")]
feed = {state.name: numpy.zeros((1, state.shape[1], 0, 99), "float32") for state in past}
feed |= {"input_ids": ids[:, :1], "encoder_hidden_states": hidden}
feed["encoder_attention_mask"] = numpy.ones_like(ids)
logits, *present = decoder.run(None, feed)
print([state.name for state in past][:4], present[2].shape[2], logits.shape[:2], "torch" in sys.modules)
"""
    said = subprocess.run(
        [sys.executable, "-c", alone, str(folder)], check=True, capture_output=True, text=True
    ).stdout
    names = [f"past_key_values.0.{name}" for name in ("decoder.key", "decoder.value")]
    names += [name.replace("decoder", "encoder") for name in names]
    assert said.strip() == f"{names} 4 (1, 1) False"


@pytest.mark.slow
def test_every_search_of_a_run_is_possible_with_the_graphs(exported: tuple[Path, str]) -> None:
    texts = ["Anna: Lunch at noon?\nBen: Yes, see you there.", "A: Bye", "A: Late?\nB: The bus was late."]
    by_torch, by_onnx = load("embedded"), load(exported[0])
    for search in ({"num_beams": 3, "length_penalty": 0.3}, {"no_repeat_ngram_size": 2, "min_new_tokens": 9}):
        assert by_onnx.generate(texts, max_new_tokens=12, **search) == by_torch.generate(
            texts, max_new_tokens=12, **search
        )


@pytest.mark.slow
def test_a_graph_in_int8_is_smaller(exported: tuple[Path, str], tmp_path: Path) -> None:
    from lora_hf.exporting import onnx

    folder = tmp_path / "int8"
    shutil.copytree(exported[0], folder)
    for name in (onnx.ENCODER, onnx.DECODER):
        onnx._quantize(folder / name)
        assert (folder / name).stat().st_size < 0.8 * (exported[0] / name).stat().st_size
    manifest = json.loads((folder / "lora_hf.json").read_text())
    del manifest["export"]["sha256"]
    (folder / "lora_hf.json").write_text(json.dumps(manifest))
    assert load(folder).generate(["Anna: Lunch at noon?\nBen: Yes."], max_new_tokens=9)[0]


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    record = {"config": {"model_type": "t5"}}
    (tmp_path / "lora_hf.json").write_text(json.dumps({"export": record}))
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match="has no encoder_model.onnx: export the model again"):
        OnnxModel(tmp_path)
