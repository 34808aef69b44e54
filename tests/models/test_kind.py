"""Models of other kinds than the commands work with: one error that says which, and how to use them."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.families import is_encoder_decoder
from support.matrix_models import LISTED
from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from lora_hf import cli
from lora_hf.adapters.peft_format import CONFIG_NAME
from lora_hf.doctor import of_adapter, of_config
from lora_hf.errors import UserError
from lora_hf.models.kind import check_kind, is_text_to_text

OTHERS = {
    "whisper": ("WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq", "docs/other_models.md"),
    "vision-encoder-decoder": (
        "VisionEncoderDecoderModel",
        "AutoModelForImageTextToText",
        "docs/other_models.md",
    ),
    "llama": ("LlamaForCausalLM", "AutoModelForCausalLM", "notebooks/decoder_only.ipynb"),
    "bert": (
        "BertForSequenceClassification",
        "AutoModelForSequenceClassification",
        "docs/other_models.md",
    ),
    "vit": ("ViTForImageClassification", "AutoModelForImageClassification", "notebooks/vision_vit.ipynb"),
    "qwen2_audio": (
        "Qwen2AudioForConditionalGeneration",
        "AutoModelForMultimodalLM",
        "docs/other_models.md",
    ),
}
"""model_type -> its class, the Auto class that loads it, and where the Python API is shown with it."""


def other(folder: Path, kind: str = "whisper") -> str:
    """A checkpoint of another kind, without weights: what is refused needs none of them."""
    folder.mkdir()
    settings = {"model_type": kind, "architectures": [OTHERS[kind][0]]}
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def adapter_of(base: str, folder: Path) -> str:
    """An adapter that names a base, as PEFT writes it."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": base}
    (folder / CONFIG_NAME).write_text(json.dumps(settings))
    return str(folder)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("has_class", [True, False])
def test_another_kind_is_refused_by_its_class_its_loader_and_what_shows_its_use(
    kind: str, has_class: bool
) -> None:
    built, auto, guide = OTHERS[kind]
    with pytest.raises(UserError) as raised:
        check_kind({"model_type": kind, "architectures": [built] if has_class else None}, "--base='x'")
    text = str(raised.value)
    assert text.startswith("--base='x' is not an encoder-decoder from text to text") and repr(kind) in text
    assert guide in text and "lora_hf.inject_adapters" in text
    assert (f"{kind!r} ({built}), which" in text) == has_class
    assert not has_class or f"loads with {auto}." in text


@pytest.mark.parametrize(
    ("kind", "built", "half"),
    [
        ("t5", "T5EncoderModel", "an encoder alone"),
        ("bart", "BartForCausalLM", "a decoder alone"),
        ("bart", "BartModel", None),  # as facebook/bart-base has it, whose head is its embeddings
        ("t5", None, None),
    ],
)
def test_half_of_an_encoder_decoder_is_refused_by_name(
    kind: str, built: str | None, half: str | None
) -> None:
    settings = {"model_type": kind, "architectures": [built] if built else None}
    with pytest.raises(UserError, match=rf"^--base='x' is {half} \(") if half else nullcontext():
        check_kind(settings, "--base='x'")


def test_a_pair_whose_encoder_has_a_decoder_is_refused() -> None:
    pair = {"model_type": "encoder-decoder", "decoder": {"model_type": "bart"}}
    check_kind(pair | {"encoder": {"model_type": "bert"}}, "--base='x'")
    with pytest.raises(UserError, match=r"^--base='x': the encoder .* \(model_type 't5'\)"):
        check_kind(pair | {"encoder": {"model_type": "t5"}}, "--base='x'")


def test_every_model_of_transformers_is_of_one_kind_or_the_other() -> None:
    taken = [kind for kind in CONFIG_MAPPING if is_text_to_text(kind)]
    assert sorted(taken) == [kind for kind in LISTED if is_encoder_decoder(kind)]
    for kind in {*CONFIG_MAPPING} - {*taken}:
        with pytest.raises(UserError, match="is not an encoder-decoder from text to text"):
            check_kind({"model_type": kind}, "--base='x'")


def test_an_encoder_decoder_that_a_program_registers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnConfig(BartConfig):
        model_type = "own_bart"

    class OwnModel(BartForConditionalGeneration):
        config_class = OwnConfig

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {"own_bart": OwnConfig})
    with pytest.raises(UserError, match="'own_bart'"):
        check_kind({"model_type": "own_bart"}, "--base='x'")
    monkeypatch.setattr(AutoModelForSeq2SeqLM._model_mapping, "_extra_content", {OwnConfig: OwnModel})
    check_kind({"model_type": "own_bart"}, "--base='x'")


COMMANDS = {
    "train": "train --config quickstart {model} output_dir=run",
    "full": "train --config quickstart {model} output_dir=run method=full",
    "evaluate": "evaluate --config quickstart {model}",
    "plan": "plan --config quickstart {model}",
    "export": "export {base} --output run",
    "predict": "predict texts.jsonl --adapter {adapter}",
    "predict on a base": "predict texts.jsonl --adapter {adapter} --base {base}",
    "merge": "merge --adapter {adapter} --output run",
    "merge into a base": "merge --adapter {adapter} --base {base} --output run",
    "serve": "serve --adapter one={adapter}",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_refuses_another_kind_by_one_error_before_anything_is_written(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"dialogue": "Yes."}\n')
    base = other(tmp_path / "base")
    adapter = adapter_of("elsewhere" if "--base" in command else base, tmp_path / "adapter")
    words = command.format(model=f"model.model_name_or_path={base}", base=base, adapter=adapter).split()
    assert cli.run(words, debug=False) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    fields = {"{model}": "model.model_name_or_path", "--base": "--base", "export": "MODEL"}
    field = next((field for part, field in fields.items() if part in command), "base_model_name_or_path")
    assert f"{field}={base!r} is not an encoder-decoder" in error
    assert not (tmp_path / "run").exists()


def test_the_doctor_is_red_on_another_kind_and_on_its_adapter(tmp_path: Path) -> None:
    base = other(tmp_path / "base", "llama")
    for found in (
        of_config(Path("quickstart"), [f"model.model_name_or_path={base}"]),
        of_adapter(adapter_of(base, tmp_path / "adapter")),
    ):
        red = [finding for finding in found if "is not an encoder-decoder" in finding.title]
        assert [(finding.check, finding.state) for finding in red] == [("checkpoint", "fault")]
        assert "(LlamaForCausalLM)" in red[0].title and "decoder_only.ipynb" in red[0].title
