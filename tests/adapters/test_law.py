"""branch(x, Wx, base) == delta(W) x: for every method on every backend, from every start.

Pairs that make no sense are in the same matrix: they must be refused, by an error that names both.
"""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.packages import import_or_skip
from torch import Tensor, nn

from lora_hf.adapters.backends import BACKENDS, Backend, backend_for, type_name
from lora_hf.adapters.backends.quantized import Quantized
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import dropout as dropout_of
from lora_hf.adapters.functional import lora_scaling
from lora_hf.adapters.initialize import initialize_layer
from lora_hf.adapters.inits import INITS
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.fast.int8 import Int8Linear, RowInt8
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.models.storage.base import LayerwiseFormat

IN, OUT, R, ALPHA, GROUP = 64, 32, 4, 10.0, 16
LINEAR, CONV = "torch.nn.modules.linear.Linear", "torch.nn.modules.conv.Conv2d"


def dense(bias: bool = True) -> nn.Module:
    return nn.Linear(IN, OUT, bias=bias)


def conv1d(bias: bool = True) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(OUT, IN)
    nn.init.normal_(layer.bias)
    return layer


def conv2d(bias: bool = True) -> nn.Module:
    return nn.Conv2d(8, OUT, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, bias=bias)


def embedding(bias: bool = True) -> nn.Module:
    return nn.Embedding(IN, OUT)


def four_bit(bias: bool = True, quant_type: str = "nf4") -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(IN, OUT, bias=bias, quant_type=quant_type, compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.randn(OUT, IN), requires_grad=False, quant_type=quant_type)
    return layer.to("cpu")


def eight_bit(bias: bool = True) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(IN, OUT, bias=bias, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(torch.randn(OUT, IN), requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")


def quantized(storage: str, bias: bool = True) -> nn.Module:
    """A layer of a storage format that quantizes layer by layer."""
    import_or_skip(STORAGE_FORMATS[storage].package)
    config = ModelConfig(hqq_group_size=GROUP)
    return STORAGE_FORMATS[storage].convert(nn.Linear(IN, OUT, bias=bias), config)


def generating_int8(bias: bool = True) -> nn.Module:
    dense = nn.Linear(IN, OUT, bias=bias)
    return Int8Linear(RowInt8.quantize(dense.weight), dense.bias)


LAYERWISE = [name for name, stored in STORAGE_FORMATS.items() if isinstance(stored, LayerwiseFormat)]
EXAMPLES: dict[str, Any] = {
    LINEAR: dense,
    "transformers.pytorch_utils.Conv1D": conv1d,
    CONV: conv2d,
    "torch.nn.modules.sparse.Embedding": embedding,
    "bitsandbytes.nn.modules.Linear4bit": four_bit,
    "bitsandbytes.nn.modules.Linear8bitLt": eight_bit,
    "lora_hf.fast.int8.Int8Linear": generating_int8,
    **{name: partial(quantized, name) for name in LAYERWISE},
}
"""Layers by their key in BACKENDS, or in STORAGE_FORMATS: each of those is a case of its own."""
KINDS: dict[str, type[Backend]] = {name: BACKENDS.get(name, Quantized) for name in EXAMPLES}


def is_refused(backend: str, method: str, init: bool | str) -> bool:
    kind = KINDS[backend]
    needs_quantized = init == "loftq" and not kind.is_quantized
    needs_linear = method == "qalora" and (not kind.is_linear or init == "loftq")
    name = kind.plain_init if init is True else init
    freezes_zero = method == "lora_fa" and name == "lookup"
    is_drawn = method == "vera" and (not kind.is_linear or init not in (True, "kaiming"))
    return needs_quantized or needs_linear or freezes_zero or is_drawn


MATRIX = [(b, m, i) for b in KINDS for m in ADAPTER_METHODS for i in INITS]
matrix = pytest.mark.parametrize(("backend", "method", "init"), [c for c in MATRIX if not is_refused(*c)])
refused = pytest.mark.parametrize(("backend", "method", "init"), [c for c in MATRIX if is_refused(*c)])


def config_of(method: str, init: bool | str, dropout: float = 0.0, **more: Any) -> LoraConfig:
    flags: dict[str, Any] = {} if method == "lora" else {f"use_{method}": True}
    if method == "qalora":
        flags["qalora_group_size"] = GROUP
    if method != "vera":  # which has no scale
        flags["lora_alpha"] = ALPHA
    return LoraConfig(r=R, lora_dropout=dropout, init_lora_weights=init, **flags, **more)


def make_layer(backend: str, method: str, init: bool | str, dropout: float = 0.0, **more: Any) -> LoraLayer:
    torch.manual_seed(0)
    layer = LoraLayer(EXAMPLES[backend]())
    layer.requires_grad_(False)
    config = config_of(method, init, dropout, **more)
    layer.add("default", config, initialize_layer(config, layer.base, original_of(layer)))
    layer.activate({"default": 1.0})
    return layer


def randomize(layer: LoraLayer) -> None:
    with torch.no_grad():
        for parameter in layer.adapters.parameters():
            parameter.copy_(torch.randn_like(parameter))


def original_of(layer: LoraLayer) -> Tensor | None:
    """A weight that the quantized store is not yet that of."""
    return torch.randn(OUT, layer.base.in_features) if layer.base.is_quantized else None


def make_x(layer: LoraLayer, dtype: torch.dtype = torch.float32) -> Tensor:
    if isinstance(layer.base_layer, nn.Embedding):
        return torch.randint(IN, (2, 5))
    shape = (2, 8, 7, 6) if isinstance(layer.base_layer, nn.Conv2d) else (2, 5, IN)
    return torch.randn(shape, dtype=dtype)


def apply(matrix: Tensor, x: Tensor, layer: LoraLayer) -> Tensor:
    """W x by torch's own operation: the independent reference."""
    base = layer.base_layer
    if isinstance(base, nn.Embedding):
        return F.one_hot(x, IN).to(matrix.dtype) @ matrix.T
    if isinstance(base, nn.Conv2d):
        return F.conv2d(
            x, matrix.view_as(base.weight), None, base.stride, base.padding, base.dilation, base.groups
        )
    return x @ matrix.T


def test_every_backend_has_an_example() -> None:
    assert {type_name(make()) for make in EXAMPLES.values()} == BACKENDS.keys()


@matrix
def test_the_branch_is_the_product_with_delta(backend: str, method: str, init: bool | str) -> None:
    layer = make_layer(backend, method, init)
    randomize(layer)
    x, adapter = make_x(layer), layer.adapters["default"]
    W = layer.base.dequantize(torch.float32)
    branch = adapter.branch(x, apply(W, x, layer), layer.base)
    torch.testing.assert_close(branch, apply(adapter.delta(W), x, layer), rtol=1e-4, atol=5e-4)
    assert branch.abs().max() > 0.1


@matrix
def test_the_layer_adds_the_branch_to_what_the_bare_layer_gives(
    backend: str, method: str, init: bool | str
) -> None:
    layer = make_layer(backend, method, init)
    randomize(layer)
    x = make_x(layer)
    W = layer.base.dequantize(torch.float32)
    delta = layer.adapters["default"].delta(W)
    expected = layer.base_layer(x) + apply(delta, x, layer)
    # int8 rounds the activations too, so that DoRA, which scales the layer's own W x, differs by as much
    loose = method == "dora" and "8bit" in backend
    size = apply(delta.abs(), x.abs(), layer).max().item()
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=0.02 * size if loose else 5e-4)


@matrix
def test_the_initial_output_is_the_base_s(backend: str, method: str, init: bool | str) -> None:
    """Bit for bit; a base that is quantized again for the initialization has the reported error."""
    torch.manual_seed(0)
    layer = LoraLayer(EXAMPLES[backend]())
    x, original = make_x(layer), spectrum_of_a_trained_weight(OUT, layer.base.in_features)
    if layer.base.is_quantized:
        layer.base.stored_weight = layer.base.requantize(original)
    before, W = layer.base_layer(x), layer.base.dequantize(torch.float32)
    config = config_of(method, init, loftq_iter=3)
    initial = initialize_layer(config, layer.base, original if layer.base.is_quantized else None)
    layer.add("default", config, initial)
    layer.activate({"default": 1.0})
    if initial.base_weight is not None or init == "loftq":
        now = layer.base.dequantize(torch.float32)
        whole = now + layer.adapters["default"].delta(now)
        errors = [((matrix - original).norm() / original.norm()).item() for matrix in (W, whole)]
        assert initial.errors == pytest.approx(errors, rel=1e-3)
        assert init == "olora" or errors[1] < 0.95 * errors[0]
        layer.enable(False)
    assert torch.equal(layer(x), before)


def spectrum_of_a_trained_weight(rows: int, columns: int) -> Tensor:
    """A random matrix whose singular values fall as 1/k."""
    U, S, Vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return U * (S[0] / torch.arange(1, len(S) + 1)) @ Vh


@refused
def test_an_impossible_combination_is_refused_by_name(backend: str, method: str, init: bool | str) -> None:
    layer = LoraLayer(EXAMPLES[backend]())
    kind = type(layer.base_layer).__name__
    with pytest.raises(UserError, match=f"loftq.*(dense|use_)|use_{method}.*{kind}|{init}.*use_{method}"):
        initialize_layer(config_of(method, init), layer.base, original_of(layer))


def test_loftq_is_refused_where_the_weight_before_quantization_is_lost() -> None:
    with pytest.raises(UserError, match="loftq.*before quantization.*base_weights="):
        initialize_layer(config_of("lora", "loftq"), backend_for(four_bit()))


@matrix
def test_the_initial_update_has_the_weight_s_shape(backend: str, method: str, init: bool | str) -> None:
    layer = make_layer(backend, method, init)
    adapter, columns = layer.adapters["default"], layer.base.in_features
    A, B = (adapter.vera_A, adapter.vera_B) if method == "vera" else (adapter.lora_A, adapter.lora_B)
    assert A.shape == (R, columns // GROUP if method == "qalora" else columns)
    assert B.shape == (OUT, R)
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    assert max(A.abs().max(), B.abs().max()) > 0


TOLERANCE = {
    "Linear4bit": 0.16,
    "Linear8bitLt": 0.5 / 127 + 1e-3,
    "affine4": 0.08,
    "torchao_int8": 0.5 / 127 + 1e-3,
    "Int8Linear": 0.5 / 127 + 1e-3,
}
"""Half the widest gap between two levels, as a share of the largest weight; NF4's is 0.30 of a block's."""


@matrix
def test_merging_gives_the_unmerged_output_and_unmerging_the_old_bits(
    backend: str, method: str, init: bool | str
) -> None:
    layer = make_layer(backend, method, init)
    randomize(layer)
    x = make_x(layer)
    before = layer.base.dequantize(torch.float32).clone()
    delta = layer.adapters["default"].delta(before)
    layer.merge({"default": 1.0})
    merged = layer.base.dequantize(torch.float32)
    is_exact = not layer.base.is_quantized or (method == "qalora" and layer.base.group_size)
    gap = 2e-6 if is_exact else TOLERANCE[backend.split(".")[-1]]
    assert (merged - (before + delta)).abs().max() <= gap * (before + delta).abs().max()
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    layer.unmerge()
    assert torch.equal(layer.base.dequantize(torch.float32), before)


TRAINED = {"lora_fa": {"lora_B"}, "vera": {"vera_lambda_b", "vera_lambda_d"}}
"""The parameters with gradients, where they are not A and B."""


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("method", ADAPTER_METHODS)
@pytest.mark.parametrize("backend", [b for b in KINDS if not KINDS[b].is_quantized])
def test_gradients_are_those_of_dense_autograd_in_float64(backend: str, method: str, dropout: float) -> None:
    init = "pissa" if method != "vera" else True
    if is_refused(backend, method, init):
        pytest.skip("refused, and tested so above")
    layer = make_layer(backend, method, init, dropout).double().train()
    randomize(layer)
    x = make_x(layer, torch.float64).requires_grad_(not isinstance(layer.base_layer, nn.Embedding))
    adapter = layer.adapters["default"]
    ours = gradients(lambda: layer(x), x, adapter)
    reference = gradients(lambda: dense_reference(layer, adapter, method, x, dropout), x, adapter)
    assert set(ours) == set(reference) >= TRAINED.get(method, {"lora_A", "lora_B"})
    for name, gradient in reference.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-9, msg=name)


def gradients(run: Any, x: Tensor, adapter: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)  # the same dropout mask
    output = run()
    torch.manual_seed(2)
    named = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    named |= {"x": x} if x.requires_grad else {}
    grads = torch.autograd.grad((output * torch.randn_like(output)).sum(), list(named.values()))
    return dict(zip(named, grads, strict=True))


def dense_reference(layer: LoraLayer, adapter: Any, method: str, x: Tensor, dropout: float) -> Tensor:
    """The formula of the table, with whole matrices: c (W - s B' A') x + c s B A P dropout(x) + b."""
    W, base = layer.base.dequantize(torch.float64), layer.base_layer
    s = ALPHA / R
    if method == "vera":
        up, down = adapter.vera_lambda_b.diag() @ adapter.vera_B, torch.zeros_like(W)
        up = up @ adapter.vera_lambda_d.diag() @ adapter.vera_A
    else:
        up, down = s * adapter.lora_B @ adapter.lora_A, s * adapter.offset_B @ adapter.offset_A
    if method == "qalora":
        up, down = (m.repeat_interleave(GROUP, dim=1) for m in (up, down))
    if isinstance(base, nn.Embedding):
        keep = F.dropout(torch.ones(*x.shape, 1, dtype=torch.float64), dropout)
        low = apply(up, x, layer) * keep
    else:
        low = apply(up, dropout_of(x, dropout), layer)
    output = apply(W - down, x, layer) + low
    shape = (-1, 1, 1) if isinstance(base, nn.Conv2d) else (-1,)
    if method == "dora":
        norm = (W + up - down).norm(dim=1).detach()
        output = (adapter.lora_magnitude_vector / norm).view(shape) * output
    bias = getattr(base, "bias", None)
    return output if bias is None else output + bias.view(shape)


@pytest.mark.parametrize("method", ADAPTER_METHODS)
@pytest.mark.parametrize("backend", [b for b in KINDS if KINDS[b].is_quantized])
def test_gradients_on_a_quantized_base_are_those_of_its_dequantized_weight(backend: str, method: str) -> None:
    layer = make_layer(backend, method, True)
    randomize(layer)
    x = make_x(layer).requires_grad_()
    twin = LoraLayer(nn.Linear(IN, OUT))
    twin.base_layer.load_state_dict({"weight": layer.base.dequantize(torch.float32), "bias": layer.bias})
    config = config_of(method, True)
    twin.add("default", config, initialize_layer(config, twin.base))
    twin.requires_grad_(False).adapters["default"].set_trainable(True)
    twin.adapters.load_state_dict(layer.adapters.state_dict())
    twin.activate({"default": 1.0})
    ours, reference = (gradients(lambda m=m: m(x), x, m.adapters["default"]) for m in (layer, twin))
    for name, gradient in reference.items():
        loose = "8bit" in backend and name in ("x", "lora_magnitude_vector")  # int8 rounds activations
        size = gradient.abs().max().item()
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=(0.05 if loose else 1e-4) * size)


def test_dropout_falls_on_the_adapter_s_input_only_and_only_in_training() -> None:
    layer = make_layer(LINEAR, "lora", True, dropout=0.5)
    randomize(layer)
    x = torch.randn(4, IN)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    with torch.no_grad():
        layer.adapters["default"].lora_B.zero_()
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("method", ADAPTER_METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_gives_half_precision_out_and_float32_gradients(
    dtype: torch.dtype, method: str
) -> None:
    layer = LoraLayer(nn.Linear(IN, OUT, dtype=dtype).requires_grad_(False))
    config = config_of(method, True)
    layer.add("default", config, initialize_layer(config, layer.base))
    layer.activate({"default": 1.0})
    randomize(layer)
    output = layer(torch.randn(3, IN, dtype=dtype))
    output.float().sum().backward()
    assert output.dtype == dtype
    trained = [p for p in layer.adapters.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 10.0 / 4), (True, 10.0 / 2)])
def test_the_scale_is_alpha_over_r_or_over_its_root(use_rslora: bool, scaling: float) -> None:
    assert lora_scaling(R, ALPHA, use_rslora) == scaling
    layer = make_layer(LINEAR, "lora", True, use_rslora=use_rslora)
    randomize(layer)
    adapter, W = layer.adapters["default"], layer.base.dequantize(torch.float32)
    torch.testing.assert_close(adapter.delta(W), scaling * adapter.lora_B @ adapter.lora_A)


def test_a_layer_of_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="LayerNorm"):
        backend_for(nn.LayerNorm(4))
