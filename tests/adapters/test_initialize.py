"""Starts that read the weight: what they leave behind, on disk too, and what holds on a quantized base."""

import logging
from itertools import product
from pathlib import Path

import pytest
import torch
from support.models import logits, make_t5, nf4_t5
from support.selection import slow_except
from torch import Tensor, nn

from lora_hf import LoraConfig, inject_adapters, load_adapter, save_adapter
from lora_hf.adapters.inits import INITS, loftq, olora, pissa
from lora_hf.adapters.load import put_adapter_state
from lora_hf.adapters.model_state import lora_layers, update_state
from lora_hf.adapters.save import adapter_state
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.models.load import load_model


def move(model: nn.Module) -> nn.Module:
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def decaying(rows: int = 48, columns: int = 64) -> Tensor:
    torch.manual_seed(0)
    U, _, Vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return U / torch.arange(1, rows + 1) @ Vh


@pytest.mark.parametrize("scaling", [0.5, 2.0])
def test_pissa_s_factors_are_the_best_approximation_at_any_scale(scaling: float) -> None:
    W = decaying()
    start = pissa(W, 5, scaling)
    left = W - scaling * start.lora_B @ start.lora_A
    singular = torch.linalg.svdvals(W)
    torch.testing.assert_close(torch.linalg.svdvals(left)[0], singular[5])  # Eckart and Young
    torch.testing.assert_close(left.norm(), singular[5:].norm())


@pytest.mark.parametrize("niter", [2, 4])
def test_the_randomized_svd_comes_within_a_percent_of_the_exact_one(niter: int) -> None:
    W = decaying(200, 300)
    best = torch.linalg.svdvals(W)[16:].norm()
    start = pissa(W, 16, 1.0, niter=niter)
    assert (W - start.lora_B @ start.lora_A).norm() < 1.01 * best


def test_olora_s_B_is_orthonormal_and_its_product_the_projection_onto_it() -> None:
    W = decaying()
    A, B, _ = olora(W, 5, 2.0)
    torch.testing.assert_close(B.T @ B, torch.eye(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        B @ (B.T @ W)[:, :5], W[:, :5], atol=1e-5, rtol=0
    )  # QR keeps the first columns


@pytest.mark.parametrize("scaling", [0.25, 1.0, 2.0, 8.0])
def test_loftq_s_error_falls_with_its_rounds_and_does_not_know_the_scale(scaling: float) -> None:
    W = decaying()

    def quantize(weight: Tensor) -> Tensor:
        step = weight.abs().max() / 3
        return (weight / step).round() * step

    errors = []
    for rounds in (1, 2, 5):
        start = loftq(W, 8, scaling, quantize, iterations=rounds)
        rest = W
        if start.subtracted is not None:
            rest = W - scaling * start.subtracted[1] @ start.subtracted[0]
        errors.append((W - quantize(rest) - scaling * start.lora_B @ start.lora_A).norm().item())
    assert errors[2] < errors[0] < (W - quantize(W)).norm().item()
    reference = loftq(W, 8, 1.0, quantize, iterations=5)
    torch.testing.assert_close(
        scaling * start.lora_B @ start.lora_A, reference.lora_B @ reference.lora_A, atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_rank_above_the_smaller_side_is_refused_with_the_layer(init: str) -> None:
    with pytest.raises(UserError, match=r"^r=25 is above 24.*\(24, 32\).*layer encoder.block.0"):
        inject_adapters(make_t5(), LoraConfig(r=25, init_lora_weights=init))


def test_an_unknown_initialization_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(UserError, match="'pisa' must be one of .*pissa"):
        LoraConfig(init_lora_weights="pisa")


@pytest.mark.parametrize(
    "fields", [{"load_in_4bit": True}, {"load_in_8bit": True, "quant_method": "torchao"}]
)
def test_loftq_on_a_layer_that_stays_dense_is_refused_with_what_would_quantize_it(fields: dict) -> None:
    model = load_model(ModelConfig(**fields), torch.device("cpu"))
    config = LoraConfig(target_modules="all-linear", init_lora_weights="loftq")
    message = r"quantize_wo: true.*by exclude_modules.*layer .*\.wo\)"
    with pytest.raises(UserError, match=message) as error:
        inject_adapters(model, config)
    assert "load_in_" not in str(error.value)  # the base has one of several already


@pytest.mark.parametrize(
    ("init", "use_dora"),
    slow_except(
        [("gaussian", True), ("pissa", False), ("pissa", True), ("pissa_niter_4", True), ("olora", False)],
        product([i for i in INITS if i not in (True, "kaiming", "lookup", "loftq")], (False, True)),
    ),
)
def test_on_a_dense_base_the_file_is_plain_lora_and_no_svd_is_repeated(
    init: str, use_dora: bool, tmp_path: Path, batch: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = logits(make_t5(), batch)
    config = LoraConfig(r=3, lora_alpha=5, use_rslora=True, use_dora=use_dora, init_lora_weights=init)
    model = inject_adapters(make_t5(), config)
    assert torch.equal(logits(model, batch), base)
    move(model)
    save_adapter(model, tmp_path)
    for name in ("svd", "qr"):
        monkeypatch.delattr(torch.linalg, name)
    again = load_adapter(make_t5(), tmp_path)
    torch.testing.assert_close(logits(again, batch), logits(model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_a_checkpoint_during_training_is_restored_bit_for_bit(init: str, tmp_path: Path, batch: dict) -> None:
    config = LoraConfig(r=3, init_lora_weights=init)
    model = move(inject_adapters(make_t5(), config))
    save_adapter(model, tmp_path)
    torch.manual_seed(77)  # a randomized start is another one now
    again = inject_adapters(make_t5(), config)
    put_adapter_state(again, SavedAdapter(tmp_path).read_weights())
    state = {key: tensor.clone() for key, tensor in adapter_state(model).items()}
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter_state(again).items())
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize(
    ("use_dora", "init", "rounds"),
    slow_except(
        [(True, "pissa", 1), (False, "pissa_niter_4", 1), (False, "olora", 1), (False, "loftq", 4)],
        [
            (use_dora, *start)
            for use_dora in (False, True)
            for start in (("pissa", 1), ("pissa_niter_4", 1), ("olora", 1), ("loftq", 1), ("loftq", 4))
        ],
        versions=True,
    ),
)
def test_a_quantized_base_is_requantized_from_the_checkpoint(
    init: str, rounds: int, use_dora: bool, tmp_path: Path, batch: dict, caplog: pytest.LogCaptureFixture
) -> None:
    config = LoraConfig(r=6, lora_alpha=12, init_lora_weights=init, loftq_iter=rounds, use_dora=use_dora)
    with caplog.at_level(logging.INFO, "lora_hf"):
        model = inject_adapters(nf4_t5(), config)
    assert f"{init}: mean relative error of 12 weights 0." in caplog.text
    full = logits(make_t5(), batch)
    plain_error = (logits(nf4_t5(), batch) - full).norm()
    if init != "olora":  # which promises no smaller error
        assert (logits(model, batch) - full).norm() < plain_error
    move(model)
    save_adapter(model, tmp_path)
    has_factors = (tmp_path / "lora_hf_start.safetensors").exists()
    assert has_factors == ((init, rounds) != ("loftq", 1))
    again = load_adapter(nf4_t5(), tmp_path)
    torch.testing.assert_close(logits(again, batch), logits(model, batch), rtol=0, atol=1e-6)
    for path, layer in lora_layers(again).items():
        assert torch.equal(layer.weight, lora_layers(model)[path].weight)


def test_an_adapter_for_one_storage_format_is_refused_on_another(tmp_path: Path) -> None:
    save_adapter(inject_adapters(nf4_t5(), LoraConfig(r=6, init_lora_weights="loftq")), tmp_path)
    for model, here in ((make_t5(), "dense"), (nf4_t5(128), "nf4, blocks of 128")):
        with pytest.raises(UserError, match=f"stored as .*nf4, blocks of 64.*stored as .*{here}"):
            load_adapter(model, tmp_path)
        assert not lora_layers(model)


def test_the_format_that_fits_is_named_by_the_fields_that_the_run_had(tmp_path: Path) -> None:
    fields = {"load_in_8bit": True, "quant_method": "torchao"}
    model = load_model(ModelConfig(**fields), torch.device("cpu"))
    inject_adapters(model, LoraConfig(r=4, init_lora_weights="pissa"))
    save_adapter(model, tmp_path, extra={"base_store": fields})
    with pytest.raises(UserError, match=r'"load_in_8bit": true, "quant_method": "torchao"') as error:
        load_adapter(load_model(ModelConfig(), torch.device("cpu")), tmp_path)
    assert "load_in_4bit" not in str(error.value)


def test_a_requantized_base_that_cannot_be_rebuilt_is_an_error(tmp_path: Path) -> None:
    save_adapter(inject_adapters(nf4_t5(), LoraConfig(r=6, init_lora_weights="pissa")), tmp_path)
    model = nf4_t5()
    update_state(model, base_weights=None)
    with pytest.raises(UserError, match="made from the weights before quantization"):
        load_adapter(model, tmp_path)


def test_an_adapter_with_a_requantized_base_excludes_others_and_restores_the_base(batch: dict) -> None:
    from lora_hf import adapter_rows, delete_adapter, disable_adapters, set_adapter

    model = nf4_t5()
    base = logits(model, batch)
    inject_adapters(model, LoraConfig(r=6, init_lora_weights="pissa"), "own")
    own = logits(model, batch)
    inject_adapters(model, LoraConfig(r=6), "plain")
    assert torch.equal(logits(model, batch), base)  # B is zero, and the base is the loaded one
    set_adapter(model, "own")
    assert torch.equal(logits(model, batch), own) and not torch.equal(own, base)
    with disable_adapters(model):
        assert torch.equal(logits(model, batch), base)
    with pytest.raises(UserError, match="'own' was initialized on a base quantized for it"):
        set_adapter(model, ["own", "plain"])
    with pytest.raises(UserError, match="base quantized for it"), adapter_rows(model, ["own", "plain", None]):
        pass
    delete_adapter(model, "own")
    set_adapter(model, "plain")
    assert torch.equal(logits(model, batch), base)


def test_gaussian_initialization_does_not_read_the_checkpoint_s_weights() -> None:
    read: list[str] = []

    def original(name: str) -> Tensor:
        read.append(name)
        return make_t5().get_submodule(name).weight

    inject_adapters(nf4_t5(), LoraConfig(init_lora_weights="gaussian"), base_weights=original)
    assert read == []
    inject_adapters(nf4_t5(), LoraConfig(init_lora_weights="pissa"), base_weights=original)
    assert len(read) == 12  # q and v of six attentions


PATTERN = {"use_rslora": True, "rank_pattern": {"v": 2}}


@pytest.mark.parametrize("start", slow_except(["pissa"], ["pissa", "olora"]))
@pytest.mark.parametrize("fields", slow_except([PATTERN], [{}, PATTERN]))
def test_quantized_and_dense_layers_together_are_saved_and_loaded(
    start: str, fields: dict, tmp_path: Path, batch: dict
) -> None:
    def original(name: str) -> Tensor:
        return make_t5().get_submodule(name).weight

    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q", "v", "wo"], "init_lora_weights": start}
    model = inject_adapters(nf4_t5(), LoraConfig(**settings, **fields), base_weights=original)
    expected = logits(move(model), batch)
    save_adapter(model, tmp_path)
    again = load_adapter(nf4_t5(), tmp_path, base_weights=original)
    torch.testing.assert_close(logits(again, batch), expected)
    state = {key: tensor.clone() for key, tensor in adapter_state(model).items()}
    move(model)
    put_adapter_state(model, state)
    torch.testing.assert_close(logits(model, batch), expected)
    assert save_adapter(again, tmp_path / "again") and torch.equal(
        logits(load_adapter(nf4_t5(), tmp_path / "again", base_weights=original), batch), logits(again, batch)
    )


def test_copies_of_a_quantized_block_are_initialized_from_its_weights() -> None:
    def original(name: str) -> Tensor:
        return make_t5().get_submodule(name).weight

    swapped = {"encoder": [[1, 2], [0, 1], [1, 2]]}
    config = LoraConfig(r=3, init_lora_weights="pissa", layer_replication=swapped)
    model = inject_adapters(nf4_t5(), config, base_weights=original)
    for place, source in enumerate((1, 0, 1)):
        layer = model.encoder.block[place].layer[0].SelfAttention.q
        W = original(f"encoder.block.{source}.layer.0.SelfAttention.q")
        now = layer.base.dequantize(torch.float32)
        assert (
            (now + layer.adapters["default"].delta(now) - W).norm() / W.norm()
        ).item() < 0.3  # 1.4 from another's
