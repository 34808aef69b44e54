"""The weights before quantization, read again from the checkpoint's files by the layers' names."""

from itertools import product
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import CPU, MODELS, make_t5, saved
from support.selection import slow_except
from torch import nn

from lora_hf import LoraConfig, UserError, inject_adapters
from lora_hf.adapters.model_state import model_state
from lora_hf.config import ModelConfig
from lora_hf.models.base_weights import CheckpointWeights
from lora_hf.models.checkpoint import checkpoint_files
from lora_hf.models.load import load_model

Q = "encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("kind", "shards"),
    slow_except([("t5", "20KB"), ("bart", "10GB")], product(MODELS, ("10GB", "20KB")), versions=True),
)
def test_the_name_of_every_linear_layer_finds_its_weight(kind: str, shards: str, tmp_path: Path) -> None:
    dense = MODELS[kind][0]()
    dense.save_pretrained(tmp_path, max_shard_size=shards)
    assert len(checkpoint_files(tmp_path)) == 1 or shards == "20KB"
    model = load_model(ModelConfig(model_name_or_path=str(tmp_path), load_in_4bit=True), CPU)
    layers = {name: x for name, x in dense.named_modules() if type(x) is nn.Linear and name != "lm_head"}
    for name, layer in layers.items():
        assert torch.equal(model_state(model).base_weights(name), layer.weight)


def test_base_weights_are_available_for_quantized_models_in_the_checkpoint_s_dtype(tmp_path: Path) -> None:
    make_t5().to(torch.bfloat16).save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path))
    assert model_state(load_model(config, CPU)).base_weights is None
    model = load_model(config.model_copy(update={"load_in_8bit": True, "dtype": "float32"}), CPU)
    assert model_state(model).base_weights(Q).dtype == torch.bfloat16


@pytest.mark.parametrize("written", ["encoder.q.weight", "model.encoder.q.weight"])
def test_tensor_names_with_or_without_a_prefix_are_found(written: str, tmp_path: Path) -> None:
    save_file({written: torch.ones(2, 3)}, tmp_path / "model.safetensors")
    for asked in ("encoder.q", "model.encoder.q"):
        assert CheckpointWeights(checkpoint_files(tmp_path), "model")(asked).shape == (2, 3)
        turned = CheckpointWeights(checkpoint_files(tmp_path), "model", [asked])
        assert turned(asked).shape == (3, 2)


def test_an_unreadable_checkpoint_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"q.weight": torch.ones(4, 1, dtype=torch.uint8)}, file)
    weights = CheckpointWeights([file])
    with pytest.raises(UserError, match=r"checkpoint .*model.safetensors'\] has no tensor 'k.weight'"):
        weights("k")
    with pytest.raises(UserError, match=r"'q.weight' in .* is quantized \(torch.uint8\)"):
        weights("q")
    file.unlink()
    with pytest.raises(UserError, match="cannot read 'q.weight' from .*model.safetensors: "):
        weights("q")


def test_a_model_of_the_hub_s_cache_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, repo = "c" * 40, tmp_path / "models--somebody--tiny"
    make_t5().save_pretrained(repo / "snapshots" / commit, max_shard_size="20KB")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = load_model(ModelConfig(model_name_or_path="somebody/tiny", load_in_4bit=True), CPU)
    assert torch.equal(model_state(model).base_weights(Q), make_t5().get_submodule(Q).weight)
    assert model_state(model).base_fingerprint


def test_loftq_on_a_loaded_base_is_nearer_to_the_dense_model(tmp_path: Path, batch: dict) -> None:
    config = saved(tmp_path).model_copy(update={"load_in_4bit": True, "quantize_wo": True})
    model = load_model(config, CPU)
    dense = load_file(tmp_path / "model.safetensors")

    def error() -> float:
        with torch.no_grad():
            return (model(**batch).logits - make_t5()(**batch).logits).norm().item()

    before = error()
    inject_adapters(
        model, LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", init_lora_weights="loftq")
    )
    assert error() < 0.9 * before
    assert torch.equal(model_state(model).base_weights(Q), dense[f"{Q}.weight"])
