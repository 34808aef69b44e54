"""Bases in fewer bits: NF4, FP4, int8 and affine, T5's `wo` dense or in the store; bytes and refusals."""

from itertools import product
from pathlib import Path

import pytest
import torch
from support.families import make_family
from support.models import CPU, T5_SHAPE, gradients_of, randomize, saved, untie_head
from support.selection import slow_except
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from lora_hf import (
    LoraConfig,
    LoraTrainer,
    inject_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
    unmerge_adapters,
)
from lora_hf.adapters.backends import backend_for
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.models.load import load_model
from lora_hf.training.nan_guard import check_base_dtype

STORES = {
    "nf4": {"load_in_4bit": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
    "torchao_int8": {"load_in_8bit": True, "quant_method": "torchao"},
    "affine4": {"load_in_4bit": True, "quant_method": "hqq", "hqq_group_size": 128},
}
EVERYTHING = LoraConfig(r=4, lora_alpha=10, target_modules="all-linear")


def make_wide() -> T5ForConditionalGeneration:
    """Wide enough that errors of single weights average out, as in real models, and that scales are few."""
    torch.manual_seed(0)
    sizes = {"d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 512, "num_layers": 1}
    model = T5ForConditionalGeneration(T5Config(**(T5_SHAPE | sizes)))
    untie_head(model)
    return model.eval()


def stored(folder: Path, store: str, **fields: object) -> ModelConfig:
    make_wide().save_pretrained(folder)
    config = ModelConfig(model_name_or_path=str(folder), **(STORES[store] | fields))
    assert config.storage == store
    return config


def logits(model: nn.Module, batch: dict) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits.float()


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), 0).item()


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    names = [name for name, layer in make_wide().named_modules() if type(layer) is nn.Linear]
    return {name: model.get_submodule(name) for name in names if name != "lm_head"}


@pytest.mark.parametrize(
    ("quantize_wo", "dtype", "store"),
    slow_except(
        product((True,), ("bfloat16",), ("nf4", "int8", "affine4")),
        product((False, True), ("float32", "bfloat16"), STORES),
        versions=product((True,), ("bfloat16",), STORES),
    ),
)
def test_every_storage_format_is_close_to_the_dense_model_with_and_without_wo(
    store: str, quantize_wo: bool, dtype: str, tmp_path: Path, batch: dict
) -> None:
    model = load_model(stored(tmp_path, store, quantize_wo=quantize_wo, dtype=dtype), CPU)
    assert cosine(logits(model, batch), logits(make_wide(), batch)) > 0.95
    assert type(model.lm_head) is nn.Linear and model.dtype == getattr(torch, dtype)
    dense = {name.rpartition(".")[2] for name, x in linear_layers(model).items() if type(x) is nn.Linear}
    assert dense == (set() if quantize_wo else {"wo"})
    assert T5ForConditionalGeneration._keep_in_fp32_modules == ["wo"]  # as it was before the load


RELU = {"feed_forward_proj": "relu"}
WIDE = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 1, "num_decoder_layers": 1}


@pytest.mark.parametrize(
    ("family", "fields", "store"),
    slow_except(
        [("LongT5", RELU, "int8"), ("SwitchTransformers", {}, "nf4")],
        [
            (*family, store)
            for family in (("LongT5", RELU), ("SwitchTransformers", {}))
            for store in ("nf4", "int8", "affine4")
        ],
        versions=True,
    ),
)
def test_feed_forward_layers_that_cast_to_their_weight_s_dtype_are_close_to_the_dense_ones(
    family: str, fields: dict, store: str, tmp_path: Path, batch: dict
) -> None:
    """Transformers quantizes their `wo` unasked."""
    model = make_family(family, **(WIDE | fields))
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(model_name_or_path=str(tmp_path), **STORES[store]), CPU)
    check_base_dtype(loaded)
    feed_forwards = {name: layer for name, layer in model.named_modules() if hasattr(layer, "wo")}
    assert len(feed_forwards) >= 2  # those of Switch are its experts
    for name, layer in feed_forwards.items():
        x = torch.randn(3, 7, 128)
        assert cosine(loaded.get_submodule(name)(x).float(), layer(x)) > 0.95


def test_a_wo_stored_as_uint8_gives_wrong_outputs(tmp_path: Path, batch: dict) -> None:
    model = load_model(stored(tmp_path, "nf4", quantize_wo=True), CPU)
    for name, layer in linear_layers(model).items():
        if name.endswith("wo"):
            assert layer.weight.dtype == torch.int8
            layer.weight.data = layer.weight.data.view(
                torch.uint8
            )  # the same bits; T5 casts activations to it
    assert cosine(logits(model, batch), logits(make_wide(), batch)) < 0.3


@pytest.mark.parametrize(
    ("store", "checkpointing"),
    slow_except([("nf4", False)], product(STORES, (False, True)), versions=[("torchao_int8", False)]),
)
def test_adapters_train_merge_and_load_on_every_layer_of_every_storage_format(
    store: str, checkpointing: bool, tmp_path: Path, batch: dict
) -> None:
    from support.tiny_trainer import Rows, arguments, make_trainer

    config = stored(tmp_path / "base", store, quantize_wo=True)
    model = inject_adapters(load_model(config, CPU), EVERYTHING)
    options = {"max_steps": 12, "learning_rate": 0.02, "gradient_checkpointing": checkpointing}
    trainer = make_trainer(model, arguments(tmp_path, **options), LoraTrainer, train_dataset=Rows(8))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])

    trained = logits(model, batch)
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(load_model(config, CPU), tmp_path / "adapter"), batch), trained)
    kinds = {name: layer.weight.dtype for name, layer in linear_layers(model).items()}
    merge_adapters(model, "requantized")
    assert cosine(logits(model, batch), trained) > 0.95
    assert {name: layer.weight.dtype for name, layer in linear_layers(model).items()} == kinds
    unmerge_adapters(model)
    assert torch.equal(logits(model, batch), trained)


@pytest.mark.parametrize(
    ("store", "dtype"),
    slow_except(
        product(("int8", "affine4"), ("bfloat16",)),
        product(STORES, ("float32", "bfloat16")),
        versions=product(STORES, ("bfloat16",)),
    ),
)
def test_finite_gradients_reach_every_adapter(store: str, dtype: str, tmp_path: Path, batch: dict) -> None:
    model = inject_adapters(
        load_model(stored(tmp_path, store, quantize_wo=True, dtype=dtype), CPU), EVERYTHING
    )
    randomize(model)
    assert gradients_of(model, batch).isfinite().all()
    assert [n for n, p in model.named_parameters() if "lora_" in n and p.grad.abs().max() == 0] == []


def test_quantize_wo_is_refused_in_float16_and_two_bit_widths_are_refused(tmp_path: Path) -> None:
    for fields in ({"dtype": "float16"}, {"bnb_4bit_compute_dtype": "float16"}):
        with pytest.raises(UserError, match="cannot be combined with float16, in which T5's wo overflows"):
            ModelConfig(load_in_4bit=True, quantize_wo=True, **fields)
        ModelConfig(quantize_wo=True, **fields)
    with pytest.raises(UserError, match="and model.load_in_4bit=true exclude each other"):
        ModelConfig(load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(UserError, match="has 8 bits only: set load_in_8bit: true, or quant"):
        ModelConfig(load_in_4bit=True, quant_method="torchao")
    with pytest.raises(UserError, match="has 4 bits only: set load_in_4bit: true, or quant"):
        ModelConfig(load_in_8bit=True, quant_method="hqq")


@pytest.mark.parametrize(("method", "bits"), [("hqq", 4), ("torchao", 8)])
def test_a_library_that_would_store_nothing_is_refused_unless_dense_is_asked_for(
    method: str, bits: int
) -> None:
    with pytest.raises(UserError, match=f"stores nothing without model.load_in_{bits}bit: true"):
        ModelConfig(quant_method=method)
    dense = {"load_in_4bit": False, "load_in_8bit": False}
    for given in ({f"load_in_{bits}bit": False}, dense):  # one variant that switches quantization off
        assert ModelConfig(quant_method=method, **given).storage == "dense"
    config = RunConfig(model={f"load_in_{bits}bit": True, "quant_method": method})
    again = load_config(config.for_run("full", 1, "x"))
    assert (again.model.storage, again.model.quant_method) == ("dense", method)


@pytest.mark.parametrize("store", STORES)
def test_full_fine_tuning_is_dense_in_a_comparison_and_refused_by_itself(store: str, tmp_path: Path) -> None:
    config = stored(tmp_path, store)
    with pytest.raises(UserError, match=r"cannot be trained in full.*or load_in_[48]bit: false"):
        RunConfig(method="full", model=config)
    assert RunConfig(model=config).for_run("full", 1, "x").model.storage == "dense"
    with pytest.raises(UserError, match="-bit weights cannot all be trained"):
        load_model(config, CPU, train_all=True)


def test_groups_that_do_not_fit_a_layer_are_named_with_what_fits(tmp_path: Path) -> None:
    config = saved(tmp_path).model_copy(update=STORES["affine4"] | {"hqq_group_size": 16})
    with pytest.raises(UserError) as error:
        load_model(config, CPU)
    assert str(error.value) == (
        "model.hqq_group_size=16 must be even and divide the 24 inputs of layer "
        "encoder.block.0.layer.0.SelfAttention.o; every layer of this model takes 8, or an even number that "
        "divides it"
    )


@pytest.mark.parametrize(
    ("store", "share"),
    slow_except(
        [("nf4", 0.27), ("int8", 0.51), ("torchao_int8", 0.51)],
        [("nf4", 0.27), ("fp4", 0.27), ("int8", 0.51), ("affine4", 0.28125), ("torchao_int8", 0.51)],
        versions=True,
    ),
)
def test_the_bytes_of_a_storage_format_relative_to_bf16(
    store: str, share: float, tmp_path: Path, batch: dict
) -> None:
    """scripts/benchmarks/weight_bytes.py measures the shapes of FLAN-T5."""
    model = load_model(stored(tmp_path, store, quantize_wo=True), CPU)
    layers = linear_layers(model).values()
    dense = sum(2 * layer.in_features * layer.out_features for layer in layers)
    loaded = sum(backend_for(layer).nbytes for layer in layers)
    assert 0.95 * share < loaded / dense <= share
    logits(model, batch)
    assert sum(backend_for(layer).nbytes for layer in layers) == loaded
