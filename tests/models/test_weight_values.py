"""Damaged values of a base: NaN, infinity, zeros, integers; and zeros that are meant."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.broken_bases import as_integers, assert_refused, error_of, spoil, zero_second_half, zeros
from support.families import FAMILIES, make_family
from support.models import CPU, saved
from support.selection import slow_except

from lora_hf import UserError
from lora_hf.config import ModelConfig
from lora_hf.doctor.base import checkpoint
from lora_hf.models.load import load_model

NOT_FINITE = (
    r"encoder.block.1.layer.0.SelfAttention.q.weight has values that are not finite .*: "
    "download the model again"
)
BROKEN = {
    "int8 without its config": (
        as_integers(torch.int8),
        r"decoder.block.0.*weight is stored as integers \(I8\), but config.json has no quantization_config.*"
        "give the checkpoint before quantization",
    ),
    "packed bytes without their config": (as_integers(torch.uint8), r"stored as integers \(U8\)"),
    "NaN": (spoil("encoder.block.1.layer.0.SelfAttention.q", float("nan")), NOT_FINITE),
    "infinity": (spoil("encoder.block.1.layer.0.SelfAttention.q", float("inf")), NOT_FINITE),
    "NaN in a norm": (
        spoil("encoder.final_layer_norm", float("nan")),
        "encoder.final_layer_norm.weight has values that are not finite",
    ),
    "half of the file is zero": (
        zero_second_half,
        r"encoder.block.*weight \(.*\) is all zeros.*: download the model again",
    ),
    "zero embeddings": (zeros("shared"), "shared.weight .* is all zeros, as after an incomplete download"),
    "most outputs are zeros": (zeros("SelfAttention.o", "wo"), "8 of 10 output projections are all zeros"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_damaged_values_are_one_error_with_the_first_such_weight(
    change: Callable[[Path], None], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_refused(saved(tmp_path), tmp_path, change, words, caplog)


def test_damaged_values_beside_the_weights_are_the_same_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BART adds `final_logits_bias`, a buffer, to its logits."""
    words = "final_logits_bias has values that are not finite"
    assert_refused(saved(tmp_path, "bart"), tmp_path, spoil("final_logits_bias", float("nan")), words, caplog)


def test_zeros_in_the_outputs_of_added_blocks_are_a_warning_that_names_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks that are added so that the model computes the same at first begin so (LLaMA Pro)."""
    config = saved(tmp_path)
    zeros("block.1.layer.0.SelfAttention.o", "encoder.block.1.layer.1.DenseReluDense.wo")(tmp_path)
    load_model(config, CPU)
    words = "3 output projections are all zeros .decoder.block.1.layer.0.SelfAttention.o.weight, .*were added"
    assert re.search(words, caplog.text)
    assert re.search(words, next(checkpoint(config)).title)


@pytest.mark.parametrize(("rows", "is_told"), [(1, False), (2, False), (20, True)])
def test_zeros_at_the_end_of_a_matrix_are_a_warning_that_names_it(
    rows: int, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that a download reserved and did not fill; a vocabulary is padded by a few rows."""
    config, file = saved(tmp_path), tmp_path / "model.safetensors"
    tensors = load_file(file)
    whole = len(tensors["shared.weight"])
    tensors["shared.weight"][-rows:] = 0
    save_file(tensors, file, {"format": "pt"})
    load_model(config, CPU)
    words = f"the last {rows} of {whole} rows of shared.weight are all zeros, as after an incomplete download"
    assert (words in caplog.text) == (words in next(checkpoint(config)).title) == is_told


@pytest.mark.parametrize("quantized", [{"load_in_4bit": True}, {"load_in_8bit": True}])
@pytest.mark.parametrize("change", [spoil("SelfAttention.q", float("nan")), zero_second_half])
def test_damaged_weights_are_named_although_they_are_quantized_while_they_are_loaded(
    change: Callable[[Path], None], quantized: dict, tmp_path: Path
) -> None:
    config = saved(tmp_path).model_copy(update=quantized)
    change(tmp_path)
    assert "download the model again" in error_of(config)


def test_a_weight_beyond_the_range_of_float16_is_distinguished_from_a_damaged_one(tmp_path: Path) -> None:
    config = saved(tmp_path).model_copy(update={"dtype": "float16"})
    spoil("SelfAttention.q", 1e5)(tmp_path)
    with pytest.raises(UserError, match=r"or, if .*65,504.* model.dtype: float32"):
        load_model(config, CPU)
    load_model(config.model_copy(update={"dtype": "float32"}), CPU)


def test_the_doctor_leaves_the_values_of_a_large_checkpoint_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved(tmp_path)
    spoil("SelfAttention.q", float("nan"))(tmp_path)
    monkeypatch.setattr("lora_hf.doctor.base.VALUES_READ", 1000)
    assert "their values are checked when a run loads them" in next(checkpoint(config)).title


@pytest.mark.parametrize(
    "family", slow_except(("T5", "Bart", "T5Gemma2"), [*FAMILIES, "T5Gemma2"], versions=True)
)
def test_no_family_initializes_a_whole_matrix_to_zero(family: str, tmp_path: Path) -> None:
    """Legitimate zeros: rows of padding, biases, BART's final_logits_bias of one row, T5Gemma 2's images."""
    make_family(family).save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path))
    load_model(config, CPU)
    assert all(finding.state == "ok" for finding in checkpoint(config))
