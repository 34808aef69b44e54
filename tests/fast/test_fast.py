"""The fast ways give what the plain ones give: values and gradients, each function and whole models."""

from contextlib import nullcontext
from threading import Thread
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.models import T5_SHAPE, TOKENS, make_bart, make_mt5, make_t5, nf4_t5, randomize
from support.selection import slow_except
from torch import Tensor, nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

from lora_hf import LoraConfig, inject_adapters, set_adapter
from lora_hf.adapters import functional
from lora_hf.adapters.functional import add_low_rank, draw_mask, dropout, fast_branches, low_rank_product
from lora_hf.adapters.model_state import lora_layers
from lora_hf.fast import loss as losses
from lora_hf.fast.attention import _aligned_sum, attention
from lora_hf.fast.elementwise import gated_gelu, rms_norm
from lora_hf.fast.loss import chunked_cross_entropy
from lora_hf.fast.t5 import (
    ATTENTION,
    HAS_INTERFACE,
    faster,
    has_plain_frozen_head,
    why_not,
    why_not_float16,
    without_head,
)

DOUBLE = {"dtype": torch.float64, "requires_grad": True}


@pytest.fixture(autouse=True)
def masks() -> Any:
    with fast_branches(True):
        yield


def assert_same(ours: Any, reference: Any, *inputs: Tensor) -> None:
    """Equal values, and equal gradients of all inputs, from the same random numbers."""
    torch.manual_seed(1)
    a = ours(*inputs)
    torch.manual_seed(1)
    b = reference(*inputs)
    torch.testing.assert_close(a, b)
    weights = torch.randn_like(b)
    for x, y in zip(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (a, b)), strict=True):
        torch.testing.assert_close(x, y)


def mask_of(shape: torch.Size, rate: float) -> Tensor:
    mask, keep = draw_mask(shape, rate)
    return mask.double() / keep


def test_the_norm() -> None:
    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    x, weight = torch.randn(2, 3, 8, **DOUBLE), torch.randn(8, **DOUBLE)
    assert_same(lambda x, w: rms_norm(x, w, 1e-6), reference, x, weight)


ONE_ROUNDING = torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float32, 1.3e-6, 1e-5), (torch.bfloat16, 1.01 * ONE_ROUNDING, 0)]
)
def test_the_norm_by_one_kernel_as_on_a_gpu(
    dtype: torch.dtype, rtol: float, atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, values and gradients are the exact ones rounded once; `T5LayerNorm` rounds more often."""
    torch.manual_seed(0)
    norm = T5LayerNorm(64).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 7, 64, dtype=dtype, requires_grad=True)
    wide, wide_weight = (tensor.detach().double().requires_grad_() for tensor in (x, norm.weight))
    exact = wide_weight * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    monkeypatch.setattr("lora_hf.fast.elementwise._has_kernel", lambda x, weight: True)
    with torch.autocast("cpu", torch.bfloat16):  # on a GPU autocast would cast to float32
        ours = rms_norm(x, norm.weight, norm.variance_epsilon)

    def with_gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
        return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    found, theirs = with_gradients(ours, x, norm.weight), with_gradients(norm(x), x, norm.weight)
    for a, b, c in zip(found, theirs, with_gradients(exact, wide, wide_weight), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), c, rtol=rtol, atol=atol)
        assert dtype == torch.float32 or (a - c).abs().max() <= (b - c).abs().max()


def test_the_gated_activation_drops_as_torch_does_without_cheap_masks() -> None:
    gate, value = torch.randn(2, 3, 10, 40)
    torch.manual_seed(0)
    with fast_branches(False):
        ours = gated_gelu(gate, value, 0.1)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, F.dropout(F.gelu(gate, approximate="tanh") * value, 0.1))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_gated_activation(rate: float) -> None:
    def reference(gate: Tensor, value: Tensor) -> Tensor:
        product = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * value
        return product * mask_of(gate.shape, rate) if rate else product

    assert_same(
        lambda g, v: gated_gelu(g, v, rate), reference, *(torch.randn(2, 3, 10, **DOUBLE) for _ in "gv")
    )


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_attention_with_dropout(scale: float) -> None:
    added = torch.zeros(2, 1, 5, 7, dtype=torch.float64)
    added[0, :, :, 5:] = -1e9

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return attention(nn.Module(), q, k, v, added, dropout=0.1, scaling=scale, position_bias=bias)[0]

    def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        p = torch.softmax(scale * q @ k.transpose(2, 3) + bias + added, -1)
        return ((p * mask_of(p.shape, 0.1)) @ v).transpose(1, 2)

    q, bias = torch.randn(2, 3, 5, 4, **DOUBLE), torch.randn(1, 3, 5, 7, **DOUBLE)
    assert_same(ours, reference, q, *(torch.randn(2, 3, 7, 4, **DOUBLE) for _ in "kv"), bias)


def test_attention_takes_float32_of_quantized_layers_under_autocast() -> None:
    query, key, value = (torch.randn(2, 3, 4, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = attention(nn.Identity(), query, key, value, None, dropout=0.1)
    assert mixed.dtype == torch.bfloat16
    mixed.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in (query, key, value))


@pytest.mark.parametrize("keys", [8, 13])
def test_the_sum_of_bias_and_mask_is_aligned_for_a_gpu(keys: int) -> None:
    bias, mask = torch.randn(1, 5, keys, 3).permute(0, 3, 1, 2), torch.randn(2, 1, 1, keys)
    added = _aligned_sum(bias, mask)
    assert torch.equal(added, bias + mask)
    assert added.stride(-1) == 1 and not any(stride % 8 for stride in added.stride()[:-1])


@pytest.mark.parametrize("of_chunk", ["_chunk", "_chunk_gpu"])
def test_the_loss_in_chunks(of_chunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_hf.fast.loss.CHUNK", 4)
    monkeypatch.setattr(losses, "_chunk", getattr(losses, of_chunk))
    head, labels = torch.randn(TOKENS, 8, dtype=torch.float64), torch.randint(TOKENS, (2, 7))
    labels[1, 3:] = -100
    hidden = torch.randn(2, 7, 8, **DOUBLE)
    assert_same(
        lambda h: chunked_cross_entropy(h, head, labels),
        lambda h: F.cross_entropy((h @ head.T).flatten(0, 1), labels.flatten()),
        hidden,
    )


def test_the_low_rank_product_with_dropout() -> None:
    def reference(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return 2.5 * x * mask_of(x.shape, 0.1) @ A.T @ B.T

    x, A, B = (torch.randn(*shape, **DOUBLE) for shape in ((2, 5, 6), (3, 6), (4, 3)))
    assert_same(lambda x, A, B: low_rank_product(x, A, B, 2.5, 0.1), reference, x, A, B)


def test_the_loss_on_a_gpu_rounds_softmax_once() -> None:
    """In bfloat16 its gradient is as near to float64's as that of the chunks on a CPU."""
    head, labels = torch.randn(TOKENS, 8).bfloat16(), torch.randint(TOKENS, (40, 1))
    hidden, is_label = torch.randn(40, 8).bfloat16(), torch.arange(40) < 37
    exact = losses._chunk(hidden.double(), head.double(), is_label, labels, torch.float64)
    found = [
        torch.linalg.vector_norm(way(hidden, head, is_label, labels, torch.float32)[1].double() - exact[1])
        for way in (losses._chunk, losses._chunk_gpu)
    ]
    assert found[1] <= 1.2 * found[0]


@pytest.mark.parametrize("has_output", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_low_rank_update_added_in_place_as_on_a_gpu(rate: float, has_output: bool) -> None:
    x, W, A, B = (torch.randn(*shape, **DOUBLE) for shape in ((2, 5, 6), (4, 6), (3, 6), (4, 3)))

    def ours(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        torch.manual_seed(2)
        if has_output:
            return add_low_rank(F.linear(x, W.detach()), x, None, A, B, 2.5, rate)
        return add_low_rank(None, x, W.detach(), A, B, 2.5, rate)

    def reference(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        torch.manual_seed(2)
        dropped = torch.native_dropout(x, rate, True)[0] if rate else x
        return x @ W.detach().T + 2.5 * dropped @ A.T @ B.T

    assert_same(ours, reference, x, A, B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_dropout_keeps_its_share_and_its_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = dropout(torch.full((999, 1001), 3.0, dtype=dtype), rate)
    zero = (y == 0).double().mean().item()
    assert zero == pytest.approx(round(rate * 256) / 256, abs=2e-3)
    for part in (y[:, ::8], y[:, 7::8]):  # every byte of a draw is as random as the others
        assert (part == 0).double().mean().item() == pytest.approx(zero, abs=4e-3)
    assert y.double().mean().item() == pytest.approx(3, rel=4e-3)
    assert len(y.unique()) == 2


def test_another_thread_takes_the_fast_path_too() -> None:
    """On a GPU, a thread of PyTorch computes checkpointed blocks again, and has to save the same tensors."""
    x, found = torch.randn(2, 40), []
    for enabled in (True, False):
        with fast_branches(enabled):
            thread = Thread(target=lambda: found.append(functional.has_cheap_masks(x, 0.1)))
            thread.start()
            thread.join()
    assert found == [True, False]


def test_dropout_rates_that_are_not_multiples_of_1_256_use_torch() -> None:
    x = torch.ones(50, 50)
    for rate, enabled in ((0.001, True), (0.01, True), (0.999, True), (0.1, False)):
        with fast_branches(enabled):
            torch.manual_seed(0)
            ours = dropout(x, rate)
        torch.manual_seed(0)
        assert torch.equal(ours, F.dropout(x, rate))
    assert functional.has_cheap_masks(x, 0.1)


def adapted(make: Any, rate: float) -> Any:
    model = inject_adapters(make(), LoraConfig(r=3, lora_alpha=5, target_modules=["q", "v", "wi_0", "wo"]))
    randomize(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = rate
    return model.train()


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models on the CPU take a GPU's fast paths."""
    monkeypatch.setattr("lora_hf.fast.elementwise._has_kernel", lambda x, weight: True)
    monkeypatch.setattr("lora_hf.adapters.methods.lora.has_fused_branches", lambda x: True)
    monkeypatch.setattr("lora_hf.fast.casting.DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(functional, "has_cheap_masks", lambda x, rate: False)
    monkeypatch.setattr("lora_hf.fast.elementwise.has_cheap_masks", lambda x, rate: False)
    monkeypatch.setattr("lora_hf.fast.attention.has_cheap_masks", lambda x, rate: False)


def test_the_gpu_fast_paths_in_a_whole_model(batch: dict, as_on_a_gpu: None) -> None:
    """Its kernel for the norm, torch's dropout and attention: from the same draws the same gradients."""
    model = adapted(make_t5, 0.1)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for way in (nullcontext, lambda: faster(model)):
        torch.manual_seed(3)
        with way():
            found.append(torch.autograd.grad(model(**batch).loss, trained))
    for ours, reference in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def overflowing(model: Any) -> Any:
    """Scale feed-forward layers until the input and the output of `wo` pass float16's largest number."""
    for name, parameter in model.named_parameters():
        if ".wi_" in name or name.endswith(".wo.weight"):
            parameter.data *= 300
    return model


@pytest.mark.parametrize(
    ("make", "targets"), [(make_t5, ["q", "v"]), (make_t5, ["q", "wi_1", "wo"]), (nf4_t5, ["q", "v"])]
)
def test_float16_autocast_is_safe_where_feed_forward_layers_overflow(
    make: Any, targets: list[str], batch: dict, as_on_a_gpu: None
) -> None:
    """As with a gradient scaler, which halves its scale while a gradient overflows."""
    model = inject_adapters(overflowing(make()), LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    randomize(model)
    trained, largest = [p for p in model.train().parameters() if p.requires_grad], [0.0, 0.0]

    def watch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        for i, x in enumerate((inputs[0], output)):
            largest[i] = max(largest[i], x.abs().max().item())

    for layer in (module for name, module in model.named_modules() if name.endswith(".wo")):
        layer.register_forward_hook(watch)

    def step(is_half: bool, fast: bool, scale: float = 1.0) -> tuple[float, Tensor]:
        with torch.autocast("cpu", torch.float16, enabled=is_half), faster(model) if fast else nullcontext():
            loss = model(**batch).loss
        found = torch.autograd.grad(loss * scale, trained)
        return loss.item(), torch.cat([g.flatten() for g in found]) / scale

    expected, gradient = step(False, False)
    assert min(largest) > torch.finfo(torch.float16).max
    assert not torch.isfinite(torch.tensor(step(True, False)[0]))  # as accelerate would train
    scales = (2.0**power for power in range(16, -16, -1))
    loss, ours = next(found for scale in scales if (found := step(True, True, scale))[1].isfinite().all())
    assert loss == pytest.approx(expected, rel=0.02)
    assert torch.cosine_similarity(ours, gradient, dim=0) > 0.99


def test_float16_is_for_gated_layers_whose_output_is_in_float32() -> None:
    assert why_not_float16(make_t5()) is None
    assert "torch.bfloat16, not in float32" in str(why_not_float16(make_t5().to(torch.bfloat16)))
    relu = T5ForConditionalGeneration(T5Config(**T5_SHAPE | {"feed_forward_proj": "relu"}))
    assert "not gated" in str(why_not_float16(relu)) and "bart" in str(why_not_float16(make_bart()))


def test_several_adapters_on_a_gpu_read_the_output_of_the_base(
    t5: nn.Module, batch: dict, as_on_a_gpu: None
) -> None:
    """A low-rank update is added in place; DoRA, which is active beside it, needs the output without it."""
    for name, use_dora in (("low", False), ("magnitude", True)):
        inject_adapters(t5, LoraConfig(r=3, lora_alpha=5, use_dora=use_dora), adapter_name=name)
    randomize(t5)
    for names in (["low", "magnitude"], ["magnitude", "low"]):
        set_adapter(t5, names)
        expected = t5(**batch).logits
        with faster(t5):
            torch.testing.assert_close(t5(**batch).logits, expected)


def test_factors_are_cast_together_until_they_change(batch: dict, as_on_a_gpu: None) -> None:
    model = adapted(make_t5, 0.0)
    with faster(model):
        with torch.autocast("cpu", torch.bfloat16):
            before = model(**batch).logits
            layer = next(iter(lora_layers(model.encoder).values()))
            method = layer.adapters["default"]
            assert method._fused_arguments(1.0)[-1][0].dtype == torch.bfloat16
            with torch.no_grad():
                method.lora_B.zero_()
            assert method._fused_arguments(1.0)[-1] is None
            assert not torch.equal(model(**batch).logits, before)
        model(**batch)  # without autocast in float32, in which nothing is cast
        assert method._fused_arguments(1.0)[-1] is None
    assert method._cast is None


@pytest.mark.parametrize("make", [make_t5, pytest.param(make_mt5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rate", slow_except([0.0], [0.0, 0.1], versions=True))
def test_a_whole_model_s_loss_and_gradients(make: Any, rate: float, batch: dict) -> None:
    """With dropout the masks differ, and so only the mean over many is held against the plain way's."""
    torch.manual_seed(0)
    model = adapted(make, rate)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for way in (nullcontext, lambda: faster(model)):
        with way():
            losses = torch.stack([model(**batch).loss for _ in range(60 if rate else 1)])
        found.append((losses, torch.autograd.grad(losses.mean(), trained)))
    (plain, g_plain), (fast, g_fast) = found
    if rate:
        assert abs(plain.mean() - fast.mean()) < 4 * (plain.std() / 60**0.5)
        assert 0.5 < plain.std() / fast.std() < 2
        return
    torch.testing.assert_close(fast, plain)
    for ours, reference in zip(g_fast, g_plain, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_the_model_is_as_it_was_after_the_block(t5: nn.Module, batch: dict) -> None:
    kinds, before = {n: type(m) for n, m in t5.named_modules()}, t5.config._attn_implementation
    expected = t5(**batch).logits
    with pytest.raises(ZeroDivisionError), faster(t5):
        assert {type(m).__name__ for m in t5.modules()} >= {"FasterT5LayerNorm", "FasterT5DenseGatedActDense"}
        torch.testing.assert_close(t5(**batch).logits, expected)
        assert torch.equal(
            t5.generate(batch["input_ids"], max_new_tokens=5),
            t5.generate(batch["input_ids"], max_new_tokens=5),
        )
        raise ZeroDivisionError
    assert {n: type(m) for n, m in t5.named_modules()} == kinds
    assert t5.config._attn_implementation == before
    assert torch.equal(t5(**batch).logits, expected)


def test_hidden_states_in_the_place_of_logits(t5: nn.Module, batch: dict) -> None:
    t5.requires_grad_(False)
    assert has_plain_frozen_head(t5)
    expected = t5(**batch)
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with without_head(t5) as head:
        shifted = t5.prepare_decoder_input_ids_from_labels(batch["labels"])
        hidden = t5(**given, decoder_input_ids=shifted).logits
    torch.testing.assert_close(F.linear(hidden, head), expected.logits)
    torch.testing.assert_close(chunked_cross_entropy(hidden, head, batch["labels"]), expected.loss)
    assert not has_plain_frozen_head(inject_adapters(make_t5(), LoraConfig(target_modules=["lm_head"])))


def test_the_log_says_why_a_module_takes_the_reference_path() -> None:
    assert why_not(make_t5()) is None and why_not(make_mt5()) is None
    assert "written for t5" in why_not(make_bart()) and "this is Linear" in why_not(nn.Linear(2, 2))


@pytest.mark.parametrize("masked_source", [False, True])
def test_a_source_shared_by_several_queries_equals_a_repeated_source(masked_source: bool) -> None:
    sources, beams, heads, keys, size = 3, 4, 2, 5, 8
    query = torch.randn(sources * beams, heads, 1, size, dtype=torch.float64)
    key, value = torch.randn(2, sources, heads, keys, size, dtype=torch.float64)
    mask = torch.randn(sources, 1, 1, keys, dtype=torch.float64) if masked_source else None
    bias = torch.randn(1, heads, 1, keys, dtype=torch.float64)
    with torch.no_grad():
        once, _ = attention(nn.Module(), query, key, value, mask, scaling=1.0, position_bias=bias)
        many = [x.repeat_interleave(beams, 0) for x in (key, value)]
        of_each = None if mask is None else mask.repeat_interleave(beams, 0)
        wanted, _ = attention(nn.Module(), query, *many, of_each, scaling=1.0, position_bias=bias)
    assert once.shape == (sources * beams, 1, heads, size)
    torch.testing.assert_close(once, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not HAS_INTERFACE, reason="this Transformers has one attention function for T5")
def test_encoder_and_decoder_use_the_fast_attention_and_restore_theirs() -> None:
    model = make_t5()
    parts = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    before = [part.config._attn_implementation for part in parts]
    with faster(model):
        assert {part.config._attn_implementation for part in parts} == {ATTENTION} and len(parts) == 3
    assert [part.config._attn_implementation for part in parts] == before
