"""Linear layers in int8: the arithmetic by hand, few and many rows, and whole models with adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import TOKENS, make_bart, make_mt5, make_t5, randomize
from torch import Tensor, nn

import lora_hf
from lora_hf import LoraConfig, UserError, adapter_rows, cli, inject_adapters, set_adapter
from lora_hf.config import ModelConfig
from lora_hf.evaluation.decoding import _ModelDecoder
from lora_hf.fast import int8
from lora_hf.fast.decoder import T5Decoder, can_step
from lora_hf.fast.int8 import FEW_ROWS, Int8Linear, RowInt8, quantize_for_generation
from lora_hf.saved.inference import InferenceModel


@pytest.fixture(params=["FBGEMM", "general"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kernels of few rows; the first is skipped on a processor that lacks it."""
    codes, scale = torch.ones(2, 4, dtype=torch.int8), torch.ones(2)
    if request.param == "general":
        monkeypatch.setattr(int8, "_fbgemm_layout", lambda codes, scale: None)
    elif int8._fbgemm_layout(codes, scale) is None:
        pytest.skip("this processor or this PyTorch has no exact FBGEMM kernels")
    return str(request.param)


def layer(out: int = 24, inside: int = 32, bias: bool = False) -> tuple[nn.Linear, Int8Linear]:
    torch.manual_seed(0)
    dense = nn.Linear(inside, out, bias=bias).requires_grad_(False)
    return dense, Int8Linear(RowInt8.quantize(dense.weight), dense.bias)


def test_codes_and_scales_by_hand() -> None:
    stored = RowInt8.quantize(torch.tensor([[1.27, -0.635, 0.004], [0.0, 0.0, 0.0]]))
    assert stored.codes.tolist() == [[127, -64, 0], [0, 0, 0]]  # -63.5 to the even number
    torch.testing.assert_close(stored.scale, torch.tensor([[0.01], [1.0]]))
    torch.testing.assert_close(
        stored.dequantize(torch.float32), torch.tensor([[1.27, -0.64, 0.0], [0.0] * 3])
    )


def integer_product(x: Tensor, stored: RowInt8) -> Tensor:
    """Return the definition at the top of `fast.int8`, in float64."""
    largest = x.abs().amax(-1, keepdim=True).double()
    codes = (x.double() * 127 / largest).round()
    return codes @ stored.codes.double().T * stored.scale[:, 0].double() * largest / 127


@torch.inference_mode()
def test_few_rows_are_integer_products(kernel: str) -> None:
    _, ours = layer()
    x = torch.randn(5, 32) * torch.tensor([1e-3, 1.0, 30.0, 1.0, 1.0])[:, None]
    x[4] = 0
    expected = integer_product(x[:4], ours.quantized).float()
    torch.testing.assert_close(ours(x)[:4], expected, atol=1e-6, rtol=1e-4)
    assert not ours(x)[4].any()


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others(kernel: str) -> None:
    _, ours = layer()
    x = torch.randn(6, 32)
    x[5] *= 1000
    torch.testing.assert_close(ours(x)[:2], ours(x[:2]), atol=0, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS + 1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@torch.inference_mode()
def test_numbers_that_are_not_finite_stay_so(rows: int, bad: float, kernel: str) -> None:
    """Rounding them to integers would hide damaged weights from the check of the scores."""
    _, ours = layer()
    x = torch.randn(rows, 32)
    for damaged in (3, slice(None)):
        x[0, damaged] = bad
        assert not ours(x)[0].isfinite().any()


def test_layers_packed_together_and_alone_are_both_kept() -> None:
    first, second = layer()[1], layer()[1]
    both, alone = first.packed(second), first.packed()
    assert first.packed(second) is both and first.packed() is alone


@torch.inference_mode()
def test_one_row_and_many_rows_are_near_the_dense_layer(kernel: str) -> None:
    dense, ours = layer(bias=True)
    for rows in (1, 2, FEW_ROWS, FEW_ROWS + 1):
        x = torch.randn(rows, 32)
        error = (ours(x) - dense(x)).norm() / dense(x).norm()
        assert error < 0.015, rows
    shaped = torch.randn(2, 3, 32, dtype=torch.bfloat16)
    assert ours(shaped).shape == (2, 3, 24) and ours(shaped).dtype == torch.bfloat16
    assert ours(torch.empty(0, 32)).shape == (0, 24)


def test_another_weight_takes_the_place_of_the_packed_one() -> None:
    _, ours = layer()
    x = torch.randn(2, 32)
    with torch.inference_mode():
        before = ours(x)
        doubled = RowInt8.quantize(2 * ours.quantized.dequantize(torch.float32))
        ours.weight, ours.scale = nn.Parameter(doubled.codes, requires_grad=False), doubled.scale
        torch.testing.assert_close(ours(x), 2 * before)


def test_gradients_reach_the_input() -> None:
    dense, ours = layer()
    x = torch.randn(3, 32, requires_grad=True)
    ours(x).sum().backward()
    torch.testing.assert_close(x.grad, ours.quantized.dequantize(torch.float32).sum(0).expand(3, 32))


MAKERS = {"t5": make_t5, "mt5": make_mt5, "bart": make_bart}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_linear_layer_is_stored_in_int8_and_the_output_stays_near(kind: str) -> None:
    model, ids = MAKERS[kind]().eval(), torch.randint(3, TOKENS, (2, 7))
    with torch.inference_mode():
        before = model(input_ids=ids, decoder_input_ids=ids).logits
        quantize_for_generation(model)
        after = model(input_ids=ids, decoder_input_ids=ids).logits
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert (after - before).norm() / before.norm() < 0.1
    with pytest.raises(UserError):
        model.save_pretrained("nowhere")


def stepped(decoder: Any, tokens: Tensor) -> Tensor:
    return torch.stack([decoder(tokens[:, at]) for at in range(tokens.shape[1])], 1)


@pytest.mark.parametrize("names", [None, ["a", None, "b"], ["b", "b", "b"]], ids=str)
@pytest.mark.parametrize("rows", [3, 1])
@torch.inference_mode()
def test_the_written_out_decoder_multiplies_by_the_same_codes(names: Any, rows: int) -> None:
    model = make_t5()
    quantize_for_generation(model)
    for name in ("a", "b"):
        inject_adapters(model, LoraConfig(r=3, target_modules=["q", "v", "wi_1"]), name)
    randomize(model)
    set_adapter(model, "a")
    torch.manual_seed(1)
    ids, tokens = torch.randint(3, TOKENS, (rows, 8)), torch.randint(3, TOKENS, (rows, 5))
    mask, chosen = torch.ones_like(ids), names and names[:rows]
    with adapter_rows(model.eval(), chosen or ["a"], frozen=True):
        encoded = model.encoder(input_ids=ids)
        assert can_step(model, encoded.last_hidden_state, mask)
        ours = stepped(T5Decoder(model, encoded.last_hidden_state, mask), tokens)
        theirs = stepped(_ModelDecoder(model, encoded, mask), tokens)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_an_adapter_writes_nearly_the_same_on_an_int8_base(trained: Path) -> None:
    from lora_hf.config.load import load_config
    from lora_hf.data.splits import load_split

    texts = [row.dialogue for row in load_split(load_config("quickstart").data, "test")[:24]]
    plain, small = lora_hf.load(trained), lora_hf.load(trained, quantization="int8")
    assert "linear layers in int8" in small.description
    pairs = list(zip(plain.generate(texts), small.generate(texts), strict=True))
    assert sum(a == b for a, b in pairs) >= 18


def test_a_model_that_cannot_be_quantized_again_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    exported = ModelConfig(model_name_or_path=str(tmp_path))
    for base, asked, says in (
        (ModelConfig(), "int4", "quantization='int4' is not one of int8; leave it out for none"),
        (ModelConfig(), True, "quantization=True is not one of int8"),
        (ModelConfig(load_in_4bit=True), "int8", "the base embedded is stored in nf4 already"),
        (exported, "int8", "was exported to ctranslate2, which has its own: give --quantization to lora-hf"),
    ):
        with pytest.raises(UserError, match=says):
            InferenceModel(base, quantization=asked)


def test_predict_and_serve_take_the_option(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def seen(model: Any) -> None:
        raise UserError("the layers are stored in int8")

    monkeypatch.setattr("lora_hf.saved.inference.quantize_for_generation", seen)
    (tmp_path / "a.txt").write_text("Anna: Lunch at noon? Ben: Yes.")
    for words in (
        ["predict", str(tmp_path / "a.txt"), "--adapter", str(trained)],
        ["serve", "--adapter", f"a={trained}", "--port", "0"],
    ):
        assert cli.run([*words, "--quantization", "int8"], debug=False) == 2
        assert "the layers are stored in int8" in capfd.readouterr().err
