"""Bases whose files are quantized by bitsandbytes already, as Transformers saves them."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import make_family
from support.models import CPU, gradients_of, make_t5, randomize, saved
from support.selection import slow_except
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

from lora_hf import LoraConfig, UserError, inject_adapters, load_adapter, merge_and_unload, save_adapter
from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.base_revision import _base_weights
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.doctor.base import checkpoint
from lora_hf.doctor.configs import targets
from lora_hf.models.load import load_model, stored_dtype
from lora_hf.models.storage.bitsandbytes import storage_of
from lora_hf.training.nan_guard import check_base_dtype, not_finite
from lora_hf.training.stored_base import check_base_of


def store(folder: Path, **fields: Any) -> ModelConfig:
    """Save a tiny T5 in 4 bits (or as `fields` say), and return its section `model`."""
    dense = saved(folder / "dense").model_name_or_path
    settings = BitsAndBytesConfig(**({"load_in_4bit": True} | fields))
    model = AutoModelForSeq2SeqLM.from_pretrained(dense, quantization_config=settings, device_map={"": CPU})
    model.save_pretrained(folder / "base")
    return ModelConfig(model_name_or_path=str(folder / "base"))


def logits(model: Any, batch: dict) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits.float()


def plain(config: ModelConfig) -> Any:
    model = AutoModelForSeq2SeqLM.from_pretrained(config.model_name_or_path, device_map={"": CPU})
    keep_differentiable(model)  # bitsandbytes cannot repack 24 rows
    return model


@pytest.mark.parametrize("storage", slow_except(["bfloat16", "float16"], ["bfloat16", "float16", "float32"]))
def test_bytes_stored_under_a_floating_point_dtype_are_not_read_as_values(
    storage: str, tmp_path: Path, batch: dict
) -> None:
    """`bnb_4bit_quant_storage`, which FSDP needs: some of the bytes are NaN as bfloat16."""
    config = store(tmp_path, bnb_4bit_quant_storage=getattr(torch, storage))
    assert all(finding.state == "ok" for finding in checkpoint(config))
    assert stored_dtype(config) == "auto"
    model = load_model(config, CPU)
    layer = model.encoder.block[0].layer[0].SelfAttention.q
    assert layer.weight.dtype == getattr(torch, storage)
    assert torch.equal(logits(model, batch), logits(plain(config), batch))
    check_base_dtype(model)
    layer.weight.data.fill_(float("nan"))  # bytes that mean something else
    assert not_finite(model, trainable=False) == []
    assert not any("SelfAttention" in name for name, _ in _base_weights(model))
    with pytest.raises(UserError, match=r"modules_to_save: .*SelfAttention.q is quantized"):
        inject_adapters(model, LoraConfig(r=2, target_modules=("v",), modules_to_save=("q",)))


@pytest.mark.parametrize("onto", ["dequantized", "requantized"])
def test_an_adapter_trains_loads_and_merges_on_bytes_stored_as_bfloat16(
    onto: str, tmp_path: Path, batch: dict
) -> None:
    config = store(tmp_path, bnb_4bit_quant_storage=torch.bfloat16)
    model = inject_adapters(load_model(config, CPU), LoraConfig(r=2, target_modules="all-linear"))
    randomize(model)
    assert gradients_of(model, batch).isfinite().all()
    trained = logits(model, batch)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_model(config, CPU), tmp_path / "adapter")
    assert torch.equal(logits(again, batch), trained)
    merge_and_unload(model, onto)
    model.save_pretrained(tmp_path / "merged")
    merged = load_model(ModelConfig(model_name_or_path=str(tmp_path / "merged")), CPU)
    assert torch.equal(logits(merged, batch), logits(model, batch))


NF4 = {"bnb_4bit_quant_type": "nf4"}
DOUBLE = {"bnb_4bit_use_double_quant": True}
OTHERWISE = [
    (NF4, {"bnb_4bit_quant_type": "fp4"}, "'fp4' .* stored with 'nf4'"),
    (DOUBLE, {"bnb_4bit_use_double_quant": False}, "false .* stored with true"),
    ({}, {"bnb_4bit_compute_dtype": "bfloat16"}, "'bfloat16' .* stored with 'float32'"),
]


@pytest.mark.parametrize(("stored", "asked", "words"), OTHERWISE)
def test_a_setting_that_the_stored_weights_do_not_have_is_refused_before_they_are_read(
    stored: dict, asked: dict, words: str, tmp_path: Path
) -> None:
    config = store(tmp_path, **stored)
    config = ModelConfig(model_name_or_path=config.model_name_or_path, load_in_4bit=True, **asked)
    run = RunConfig(model=config, data={"dataset_name": "none"})
    for file in Path(config.model_name_or_path).glob("*.safetensors"):
        file.unlink()
    for check in (lambda: check_base_of(run), lambda: list(targets(run))):
        with pytest.raises(UserError, match=f"model.{next(iter(asked))}={words} .*: remove model.bnb"):
            check()


def test_settings_that_the_stored_weights_have_and_defaults_are_fine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "bfloat16"}
    config = store(tmp_path, bnb_4bit_use_double_quant=False, **own)
    name, caught = config.model_name_or_path, caplog.at_level(logging.WARNING)
    with caught:
        load_model(config, CPU)
        fields = own | {"bnb_4bit_use_double_quant": False}
        load_model(ModelConfig(model_name_or_path=name, load_in_4bit=True, **fields), CPU)
        assert "stored in 4 bits" not in caplog.text
        config = ModelConfig(model_name_or_path=name, load_in_4bit=True)
        model = load_model(config, CPU)
    assert model.encoder.block[0].layer[0].SelfAttention.q.weight.quant_state.quant_type == "fp4"
    words = (
        f"model.model_name_or_path={name!r}: its weights are stored in 4 bits already and are used as they "
        "are, with bnb_4bit_quant_type='fp4', bnb_4bit_use_double_quant=false; "
        "model.load_in_4bit=true changes nothing"
    )
    assert words in caplog.text
    assert [finding.title for finding in checkpoint(config) if finding.is_notice] == [words]


@pytest.mark.parametrize(("bits", "storage"), [(4, "fp4"), (8, "int8")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dense_parts_are_in_the_dtype_that_is_asked_for(
    bits: int, storage: str, dtype: str, tmp_path: Path, batch: dict
) -> None:
    """`from_pretrained` leaves them in the dtype of the files, whatever its `dtype` says."""
    name = store(tmp_path, **{f"load_in_{b}bit": b == bits for b in (4, 8)}).model_name_or_path
    auto = load_model(ModelConfig(model_name_or_path=name), CPU)
    config = ModelConfig(model_name_or_path=name, dtype=dtype)
    model, wanted = load_model(config, CPU), getattr(torch, dtype)
    assert auto.dtype == torch.float32 and storage_of(auto, config) == storage_of(model, config) == storage
    quantized = {n for n, p in auto.named_parameters() if not p.is_floating_point()}
    for path, weight in model.named_parameters():
        if path in quantized:
            assert torch.equal(weight, auto.get_parameter(path))
        else:
            stays = dtype == "float16" and ".wo." in path
            assert weight.dtype == (torch.float32 if stays else wanted), path
    assert torch.allclose(logits(model, batch), logits(auto, batch), rtol=0, atol=0.05)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_wo_that_is_stored_dense_cannot_be_quantized_on_request(bits: int, tmp_path: Path) -> None:
    fields = {f"load_in_{b}bit": b == bits for b in (4, 8)}
    name = store(tmp_path, **fields).model_name_or_path
    config = ModelConfig(model_name_or_path=name, quantize_wo=True, **fields)
    words = re.escape(
        f"model.quantize_wo=true cannot be combined with model.model_name_or_path={name!r}: its weights are "
        f"stored in {bits} bits already, with the layers wo dense"
    )
    for check in (lambda: load_model(config, CPU), lambda: list(checkpoint(config))):
        with pytest.raises(UserError, match=words):
            check()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_wo_that_is_stored_quantized_loads_with_and_without_being_asked_for(
    bits: int, tmp_path: Path, batch: dict
) -> None:
    """As `save_pretrained` writes a model of `quantize_wo`; Transformers cannot read it."""
    fields = {f"load_in_{bits}bit": True}
    model = load_model(saved(tmp_path).model_copy(update=fields | {"quantize_wo": True}), CPU)
    model.save_pretrained(tmp_path / "base")
    for given in ({}, fields, fields | {"quantize_wo": True}):
        again = load_model(ModelConfig(model_name_or_path=str(tmp_path / "base"), **given), CPU)
        assert torch.equal(logits(again, batch), logits(model, batch))
    assert type(make_t5())._keep_in_fp32_modules == ["wo"]


@pytest.mark.parametrize("storage", slow_except(["uint8"], ["uint8", "bfloat16"]))
def test_stored_bytes_to_whose_dtype_activations_are_cast_are_kept_as_int8(
    storage: str, tmp_path: Path, batch: dict
) -> None:
    """LongT5 rounds the input of its `wo`, which Transformers quantizes, to the dtype of the bytes."""
    model = make_family("LongT5", feed_forward_proj="relu", d_model=64, d_ff=128, num_layers=1)
    model.save_pretrained(tmp_path / "dense")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=getattr(torch, storage))
    quantized = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "dense", quantization_config=settings, device_map={"": CPU}
    )
    quantized.save_pretrained(tmp_path / "base")
    loaded = load_model(ModelConfig(model_name_or_path=str(tmp_path / "base")), CPU)
    check_base_dtype(loaded)
    for name, layer in model.named_modules():
        if hasattr(layer, "wo"):
            x = torch.randn(3, 7, 64)
            again = loaded.get_submodule(name)
            assert again.wo.weight.dtype == torch.int8
            assert torch.cosine_similarity(again(x).flatten(), layer(x).flatten(), 0) > 0.95
