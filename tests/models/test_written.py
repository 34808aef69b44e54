"""A saved model is read again by Transformers alone, and another one is not taken for the result."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.families import make_family, read_folder
from support.selection import slow_except
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lora_hf.config import DataConfig, ModelConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.errors import WrittenModelDiffers
from lora_hf.files import whole
from lora_hf.models import plain_folder, written
from lora_hf.models.head import guard_ties, untie_head
from lora_hf.models.load import ASSETS, load_tokenizer
from lora_hf.models.written import check_written


def lose_the_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def lose_the_scale(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["tie_word_embeddings"] = settings["scale_decoder_outputs"] = True
    (folder / "config.json").write_text(json.dumps(settings))


def lose_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def embedded() -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(ASSETS).eval()


@pytest.mark.parametrize("family", ["T5Gemma", "Marian unshared", "UMT5", "BertGpt2"])
def test_a_folder_that_transformers_reads_as_it_was_saved_passes(family: str, tmp_path: Path) -> None:
    model = make_family(family).train()
    model.save_pretrained(tmp_path)
    assert check_written(model, tmp_path) == 0 and model.training
    assert {*tmp_path.iterdir()} >= {tmp_path / "config.json"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lose_the_head, r"another model .* differ by \S+ of their size \(allowed: 1e-03\)"),
        (lose_the_scale, "another model"),
        (lose_the_weights, "cannot read it"),
    ],
)
def test_a_folder_that_differs_is_put_aside_and_not_called_finished(
    damage: Any, says: str, tmp_path: Path
) -> None:
    model = embedded()
    with pytest.raises(
        WrittenModelDiffers, match=rf"{says}.* kept as \S+merged\.differs and must not be used"
    ):
        with whole(tmp_path / "merged") as folder:
            model.save_pretrained(folder)
            damage(folder)
            check_written(model, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["merged.differs"]
    assert (tmp_path / "merged.differs/config.json").is_file()


@pytest.mark.parametrize(
    ("family", "is_untied"),
    slow_except(
        [("T5", True), ("Marian", False)],
        [("T5", True), ("T5", False), ("UMT5", True), ("Bart", True), ("Marian", False), ("FSMT", False)],
        versions=True,
    ),
)
def test_the_readme_names_a_warning_of_transformers_where_it_is_printed(
    family: str, is_untied: bool, tmp_path: Path
) -> None:
    model = make_family(family)
    guard_ties(model)
    if is_untied:
        untie_head(model).get_output_embeddings().weight.data *= 1.1
    plain_folder.save_model(model, load_tokenizer(ModelConfig()), tmp_path, PredictionSettings())
    assert read_folder(tmp_path)[1] is is_untied
    assert ("tied weights mapping" in (tmp_path / "README.md").read_text()) is is_untied


def test_large_folders_are_read_again_on_request_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = embedded()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(written, "CHECKED_BYTES", 1000)
    with caplog.at_level("INFO"):
        assert check_written(model, tmp_path) is None
    assert "not read again and compared with the one in memory: it has 0.0 GB" in caplog.text
    assert check_written(model, tmp_path, always=True) == 0


def test_every_whole_model_that_is_saved_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`merge` and full fine-tuning both save by this function."""
    checked = []
    monkeypatch.setattr(
        plain_folder, "check_written", lambda _, *args: checked.append((args, list_of(args[0])))
    )
    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    plain_folder.save_model(embedded(), tokenizer, tmp_path, PredictionSettings(), always_check=True)
    (((folder, always), files),) = checked
    assert folder == tmp_path and always and files == list_of(tmp_path)


def list_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("length", "written_length"), [(600, 600), (64, 512)])
def test_a_text_of_the_length_of_the_training_is_read_without_a_warning(
    length: int, written_length: int, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(ModelConfig())
    assert tokenizer.model_max_length == 512
    plain_folder.save_tokenizer(tokenizer, tmp_path, DataConfig(max_source_length=length))
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == written_length


def test_a_tokenizer_is_written_in_the_words_that_transformers_4_reads(tmp_path: Path) -> None:
    """It knows no `TokenizersBackend`, and fails on a list of `extra_special_tokens`, as FLAN-T5's."""
    tokenizer = load_tokenizer(ModelConfig())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<part>", "<whole>"]})
    plain_folder.save_tokenizer(tokenizer, tmp_path, DataConfig())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<part>", "<whole>"]
    assert "extra_special_tokens" not in settings
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("Anna: Lunch?").input_ids == tokenizer("Anna: Lunch?").input_ids
    assert again.convert_tokens_to_ids("<whole>") == tokenizer.convert_tokens_to_ids("<whole>")
    assert {"<part>", "<whole>"} <= set(again.all_special_tokens)
