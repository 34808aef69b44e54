"""branch(x, Wx, base) == delta(W) x: for every method on every backend, from every start."""

import pytest
import torch
from torch import nn

from lora_hf.adapters.backends import BACKENDS, backend_for
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.inits import INITS
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.methods import METHODS

IN, OUT, R, ALPHA = 64, 32, 4, 10.0


def dense(bias: bool) -> nn.Module:
    return nn.Linear(IN, OUT, bias=bias)


def four_bit(bias: bool) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(IN, OUT, bias=bias, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.randn(OUT, IN), requires_grad=False, quant_type="nf4")
    return layer.to("cpu")


EXAMPLES = {"torch.nn.modules.linear.Linear": dense, "bitsandbytes.nn.modules.Linear4bit": four_bit}
matrix = pytest.mark.parametrize(
    ("backend", "method", "init"), [(b, m, i) for b in BACKENDS for m in METHODS for i in INITS]
)


def make_layer(backend: str, method: str, init: bool | str, dropout: float = 0.0) -> LoraLayer:
    torch.manual_seed(0)
    layer = LoraLayer(EXAMPLES[backend](bias=True))
    layer.requires_grad_(False)
    config = LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=dropout, init_lora_weights=init)
    layer.adapters["default"] = METHODS[method](config, layer.base, layer.weight.device)
    layer.active = ("default",)
    return layer


def randomize(layer: LoraLayer) -> None:
    with torch.no_grad():
        for parameter in layer.adapters.parameters():
            parameter.copy_(torch.randn_like(parameter))


def test_every_backend_has_an_example() -> None:
    assert EXAMPLES.keys() == BACKENDS.keys()


@matrix
def test_the_branch_is_the_product_with_delta(backend: str, method: str, init: bool | str) -> None:
    layer = make_layer(backend, method, init)
    randomize(layer)
    x = torch.randn(2, 5, IN)
    adapter = layer.adapters["default"]
    W = layer.base.dequantize(torch.float32)
    branch = adapter.branch(x, x @ W.T, layer.base)
    torch.testing.assert_close(branch, x @ adapter.delta(W).T, rtol=1e-5, atol=1e-4)
    assert branch.abs().max() > 0.1


@matrix
def test_the_layer_adds_the_branch_to_what_the_bare_layer_gives(
    backend: str, method: str, init: bool | str
) -> None:
    layer = make_layer(backend, method, init)
    randomize(layer)
    x = torch.randn(2, 5, IN)
    W = layer.base.dequantize(torch.float32)
    expected = layer.base_layer(x) + x @ layer.adapters["default"].delta(W).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)


@matrix
def test_the_start_is_the_identity_bit_for_bit(backend: str, method: str, init: bool | str) -> None:
    layer = make_layer(backend, method, init)
    x = torch.randn(2, 5, IN)
    assert torch.equal(layer(x), layer.base_layer(x))


@matrix
def test_the_start_has_the_update_s_shape_and_a_nonzero_A(
    backend: str, method: str, init: bool | str
) -> None:
    adapter = make_layer(backend, method, init).adapters["default"]
    assert adapter.lora_A.shape == (R, IN) and adapter.lora_B.shape == (OUT, R)
    assert adapter.lora_A.dtype == adapter.lora_B.dtype == torch.float32
    assert adapter.lora_A.abs().max() > 0


@matrix
def test_merging_gives_the_unmerged_output_and_unmerging_the_old_bits(
    backend: str, method: str, init: bool | str
) -> None:
    layer = make_layer(backend, method, init)
    randomize(layer)
    x = torch.randn(2, 5, IN)
    stored, packed = layer.weight, layer.weight.detach().clone()
    W = layer.base.dequantize(torch.float32)
    delta = layer.adapters["default"].delta(W)
    layer.merge(("default",))
    merged = layer.base.dequantize(torch.float32)
    tolerance = 1e-5 if backend.startswith("torch") else 0.16 * (W + delta).abs().max().item()
    assert (merged - (W + delta)).abs().max() <= tolerance  # NF4's widest gap is 0.30 of a block's largest
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    layer.unmerge()
    assert layer.weight is stored and torch.equal(layer.weight, packed)


@matrix
def test_gradients_are_those_of_dense_autograd(backend: str, method: str, init: bool | str) -> None:
    layer = make_layer(backend, method, init)
    randomize(layer)
    x = torch.randn(2, 5, IN, requires_grad=True)
    upstream = torch.randn(2, 5, OUT)
    adapter = layer.adapters["default"]
    A, B = (p.detach().clone().requires_grad_() for p in (adapter.lora_A, adapter.lora_B))
    x_dense = x.detach().clone().requires_grad_()
    W = layer.base.dequantize(torch.float32)
    (x_dense @ (W + ALPHA / R * B @ A).T * upstream).sum().backward()
    (layer(x) * upstream).sum().backward()
    for ours, dense_grad in (
        (adapter.lora_A.grad, A.grad),
        (adapter.lora_B.grad, B.grad),
        (x.grad, x_dense.grad),
    ):
        torch.testing.assert_close(ours, dense_grad, rtol=1e-4, atol=1e-3)
    assert layer.weight.grad is None


def test_dropout_falls_on_the_adapter_s_input_only_and_only_in_training() -> None:
    layer = make_layer("torch.nn.modules.linear.Linear", "lora", True, dropout=0.5)
    randomize(layer)
    x = torch.randn(4, IN)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    with torch.no_grad():
        layer.adapters["default"].lora_B.zero_()
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_gives_half_precision_out_and_float32_gradients(dtype: torch.dtype) -> None:
    layer = LoraLayer(nn.Linear(IN, OUT, dtype=dtype).requires_grad_(False))
    layer.adapters["default"] = METHODS["lora"](LoraConfig(r=R), layer.base, layer.weight.device)
    layer.active = ("default",)
    randomize(layer)
    output = layer(torch.randn(3, IN, dtype=dtype))
    output.float().sum().backward()
    assert output.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.adapters.parameters())


def test_a_layer_of_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="LayerNorm"):
        backend_for(nn.LayerNorm(4))
