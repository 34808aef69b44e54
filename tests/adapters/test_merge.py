"""Merging: on a dense base it is the unmerged model; on a quantized one a choice, each with its error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import make_t5, nf4_t5, randomize
from support.packages import import_or_skip
from support.selection import slow_except
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from lora_hf import (
    LoraConfig,
    disable_adapters,
    inject_adapters,
    load_adapter,
    merge_adapters,
    merge_and_unload,
    merge_errors,
    replicate_layers,
    save_adapter,
    set_adapter,
    unmerge_adapters,
)
from lora_hf.adapters.backends.quantized import QuantizedLinear
from lora_hf.adapters.model_state import lora_layers, update_state
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.models.load import load_model
from lora_hf.models.storage.hqq import AffineWeight


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def adapted(model: nn.Module, **fields: Any) -> nn.Module:
    inject_adapters(model, LoraConfig(**{"r": 3, "lora_alpha": 5, **fields}))
    if "init_lora_weights" not in fields:
        randomize(model)
    return model


def affine_t5() -> nn.Module:
    import_or_skip("hqq")
    model = make_t5()
    for name, module in list(model.named_modules()):
        if name.endswith((".q", ".v")):
            model.set_submodule(name, QuantizedLinear(AffineWeight.quantize(module.weight, 8), module.bias))
    return model


@pytest.mark.parametrize(
    "fields", [{}, {"use_dora": True}, {"use_rslora": True}, {"use_qalora": True, "qalora_group_size": 4}]
)
def test_on_a_dense_base_merging_needs_no_choice_and_moves_nothing(fields: dict, batch: dict) -> None:
    model = adapted(make_t5(), **fields)
    errors = merge_errors(model, batch)
    assert errors.keys() == {"merged"} and errors["merged"] < 1e-5
    unmerged = logits(model, batch)
    merge_adapters(model)
    unmerge_adapters(model)
    assert torch.equal(logits(model, batch), unmerged)
    torch.testing.assert_close(logits(merge_and_unload(model), batch), unmerged, rtol=1e-4, atol=1e-4)
    assert type(model.encoder.block[0].layer[0].SelfAttention.q) is nn.Linear


def test_on_a_quantized_base_the_choice_must_be_made(batch: dict) -> None:
    model = adapted(nf4_t5())
    unmerged = logits(model, batch)
    with pytest.raises(UserError, match="12 adapted layers are quantized.*onto='requantized'"):
        merge_adapters(model)
    with pytest.raises(UserError, match="'checkpoint' or 'dequantized' or 'requantized'.*merge_errors"):
        merge_and_unload(model)
    with pytest.raises(UserError, match="onto='4bit' must be one of"):
        merge_and_unload(model, "4bit")
    merge_adapters(model, "requantized")
    assert not torch.equal(logits(model, batch), unmerged)
    unmerge_adapters(model)
    assert torch.equal(logits(model, batch), unmerged)


@pytest.mark.parametrize(
    "fields",
    slow_except(
        [{"use_dora": True}], [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], versions=True
    ),
)
def test_merge_errors_equal_those_of_the_merged_models(fields: dict, batch: dict, tmp_path: Path) -> None:
    unmerged = logits(adapted(nf4_t5(), **fields), batch)
    model = adapted(nf4_t5(), **fields)
    errors = merge_errors(model, batch)
    assert torch.equal(logits(model, batch), unmerged)  # left as it was
    assert errors.keys() == {"checkpoint", "dequantized", "requantized"}
    assert errors["dequantized"] < 1e-5 < min(errors["checkpoint"], errors["requantized"])
    for onto, expected in errors.items():
        merged = merge_and_unload(adapted(nf4_t5(), **fields), onto)
        error = ((logits(merged, batch) - unmerged).norm() / unmerged.norm()).item()
        assert error == pytest.approx(expected, rel=1e-3, abs=1e-6)
        is_dense = all(type(m).__name__ != "Linear4bit" for m in merged.modules())
        assert is_dense == (onto != "requantized") and not lora_layers(merged)
        if is_dense:
            merged.save_pretrained(tmp_path / onto)
            plain = T5ForConditionalGeneration.from_pretrained(tmp_path / onto).eval()
            assert torch.equal(logits(plain, batch), logits(merged, batch))


def test_onto_the_checkpoint_is_what_a_dense_base_would_give(batch: dict) -> None:
    dense = adapted(make_t5())
    merged = merge_and_unload(adapted(nf4_t5()), "checkpoint")
    torch.testing.assert_close(logits(merged, batch), logits(dense, batch), rtol=1e-4, atol=1e-4)


def test_weights_that_an_adapter_cannot_be_merged_into_are_refused_and_not_listed(batch: dict) -> None:
    model = adapted(nf4_t5(), init_lora_weights="loftq")
    assert merge_errors(model, batch).keys() == {"dequantized", "requantized"}
    with pytest.raises(UserError, match="LoftQ adapter compensates for the errors"):
        merge_and_unload(model, "checkpoint")
    model = adapted(nf4_t5())
    update_state(model, base_weights=None)
    with pytest.raises(UserError, match="give base_weights="):
        merge_and_unload(model, "checkpoint")


def test_qalora_folds_into_the_zero_points_and_the_merged_model_is_the_unmerged_one(batch: dict) -> None:
    model = adapted(affine_t5(), use_qalora=True)
    unmerged = logits(model, batch)
    codes = {name: layer.weight.clone() for name, layer in lora_layers(model).items()}
    errors = merge_errors(model, batch, lambda name: make_t5().get_submodule(name).weight)
    assert errors["requantized"] < 1e-6 and errors["dequantized"] < 1e-6 < errors["checkpoint"]
    merge_and_unload(model)  # no choice is needed
    torch.testing.assert_close(logits(model, batch), unmerged, rtol=1e-5, atol=1e-5)
    for name, code in codes.items():
        layer = model.get_submodule(name)
        assert type(layer) is QuantizedLinear and torch.equal(
            layer.weight, code
        )  # still 4 bits, and the same


def test_plain_lora_does_not_fold_into_the_zero_points(batch: dict) -> None:
    model = adapted(affine_t5())
    with pytest.raises(UserError, match="12 adapted layers are quantized"):
        merge_adapters(model)
    errors = merge_errors(model, batch)
    assert errors["dequantized"] < 1e-5 < errors["requantized"]


def test_a_replicated_model_is_merged_only_by_merge_and_unload(batch: dict) -> None:
    model = adapted(replicate_layers(make_t5(), {"encoder": [[0, 2], [1, 2]]}))
    with pytest.raises(UserError, match="replicated and share their weights"):
        merge_adapters(model)
    unmerged = logits(model, batch)
    merge_and_unload(model)
    torch.testing.assert_close(logits(model, batch), unmerged, rtol=1e-4, atol=1e-4)
    parameters = [p.data_ptr() for p in model.parameters()]
    assert len(set(parameters)) == len(parameters) and model.config.num_layers == 3


@pytest.mark.parametrize("onto", ["dequantized", "checkpoint"])
@pytest.mark.parametrize("make", [affine_t5, nf4_t5])
def test_an_adapter_merged_in_place_is_not_added_twice(make: Any, onto: str, batch: dict) -> None:
    def original(name: str) -> Tensor:
        return make_t5().get_submodule(name).weight

    plain, model = (adapted(make(), target_modules=["q"]) for _ in range(2))
    merge_adapters(model, "requantized")
    expected = logits(merge_and_unload(plain, onto, original), batch)
    torch.testing.assert_close(logits(merge_and_unload(model, onto, original), batch), expected)


@pytest.mark.parametrize("make", [make_t5, nf4_t5])
def test_a_saved_module_gets_the_base_s_dtype(make: Any, batch: dict) -> None:
    model = adapted(make().to(torch.bfloat16), modules_to_save=["lm_head"])
    merge_and_unload(model, "dequantized" if make is nf4_t5 else None)
    assert model.lm_head.weight.dtype == torch.bfloat16 and logits(model, batch).dtype == torch.bfloat16


def test_merge_errors_are_measured_without_dropout_and_leave_the_model_unchanged(batch: dict) -> None:
    model = adapted(make_t5(), lora_dropout=0.5).train()
    model.encoder.eval()
    assert merge_errors(model, batch)["merged"] < 1e-5
    assert model.training and model.decoder.training and not model.encoder.training
    calls = iter([model.forward])
    model.forward = lambda **given: next(calls)(**given)  # the second forward fails
    with pytest.raises(StopIteration):
        merge_errors(model, batch)
    del model.forward
    assert not any(layer.merged for layer in lora_layers(model).values())
    merge_adapters(model)
    with pytest.raises(RuntimeError, match="merged; call unmerge_adapters first"):
        merge_errors(model, batch)


def test_merging_without_an_active_adapter_is_refused(batch: dict) -> None:
    model = make_t5()
    for merge in (merge_adapters, merge_and_unload):
        with pytest.raises(UserError, match=r"no adapter is active; the model has \[\]"):
            merge(model)
    adapted(model)
    set_adapter(model, [])
    with pytest.raises(UserError, match=r"the model has \['default'\]: choose one by set_adapter"):
        merge_and_unload(model)
    set_adapter(model, "default")
    with disable_adapters(model), pytest.raises(RuntimeError, match="adapters are disabled"):
        merge_adapters(model)


def test_a_quantized_model_needs_onto_even_if_the_adapted_layers_are_dense(batch: dict) -> None:
    model = adapted(nf4_t5(), target_modules=["wo"])
    assert merge_errors(model, batch).keys() == {"checkpoint", "dequantized", "requantized"}
    merge_and_unload(model, "dequantized")
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}


def test_an_adapter_on_a_merged_base_is_not_taken_for_one_of_the_base(
    tmp_path: Path, batch: dict, caplog: pytest.LogCaptureFixture
) -> None:
    def base() -> Any:
        model = make_t5()
        model.name_or_path = "anna/base"
        update_state(model, base_fingerprint="b" * 16, base_settings="s" * 16)
        return model

    model = merge_and_unload(adapted(base()))
    model.save_pretrained(tmp_path / "merged")
    assert "not those of its base's files" not in caplog.text
    adapted(model, r=2)
    assert "files will name no base, so give FOLDER" in caplog.text
    expected = logits(model, batch)
    saved = save_adapter(model, tmp_path / "second")
    for file in ("adapter_config.json", "lora_hf.json"):
        assert json.loads((saved / file).read_text())["base_model_name_or_path"] is None
    first = save_adapter(adapted(base()), tmp_path / "first")
    merged_again = merge_and_unload(load_adapter(base(), first))
    assert "to which this one is added" not in caplog.text
    caplog.clear()
    load_adapter(merged_again, first)
    assert "to which this one is added" in caplog.text and "files will name no base" not in caplog.text
    other = base()
    update_state(other, base_fingerprint="c" * 16)
    with pytest.raises(UserError, match="was trained on anna/base .fingerprint b"):
        load_adapter(merge_and_unload(adapted(other)), first)
    with pytest.raises(UserError, match="anna/base after its weights had been trained, or an adapter merged"):
        load_adapter(base(), saved)
    merged = load_model(ModelConfig(model_name_or_path=str(tmp_path / "merged")), torch.device("cpu"))
    assert torch.allclose(logits(load_adapter(merged, saved), batch), expected, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq"])
def test_weights_before_quantization_are_not_those_of_a_merged_base(init: str) -> None:
    model = nf4_t5()
    update_state(model, base_weights=make_t5().get_parameter)
    merge_and_unload(adapted(model), onto="requantized")
    with pytest.raises(UserError, match="base_weights"):
        inject_adapters(model, LoraConfig(r=2, init_lora_weights=init))
    adapted(model)
    with pytest.raises(UserError, match="onto='checkpoint' needs the weights before quantization"):
        merge_and_unload(model, onto="checkpoint")


def test_weights_that_cannot_be_read_leave_the_model_unmerged(batch: dict) -> None:
    def gone(name: str) -> Tensor:
        if "block.1" in name:  # a dense layer of the first block is merged by then
            raise OSError("the checkpoint has gone")
        return make_t5().get_submodule(name).weight

    model = adapted(nf4_t5(), target_modules=["wi_0", "q"])
    expected = logits(model, batch)
    with pytest.raises(OSError, match="has gone"):
        merge_errors(model, batch, gone)
    assert not any(layer.merged for layer in lora_layers(model).values())
    assert torch.equal(logits(model, batch), expected)
