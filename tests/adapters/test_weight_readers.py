"""Modules that read the weight of a layer without calling it: an adapter there would have no effect."""

import copy
from collections.abc import Callable

import pytest
import torch
from support.families import FAMILIES, make_family
from torch import Tensor, nn
from torch.nn import functional as F

from lora_hf import LoraConfig, UserError, inject_adapters
from lora_hf.adapters.model_state import lora_layers


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class OwnProduct(nn.Module):
    """Reads in a method that its forward calls, through a child."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"q": nn.Linear(4, 5)})
        self.v = nn.Linear(5, 5)

    def project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.inner.q.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.v(self.project(x).to(self.v.weight.dtype))


class OwnParameters(OwnProduct):
    def project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.inner.q._parameters["weight"])


class TwoBranches(OwnProduct):
    """Calls the layer too, as DeBERTa and Mamba do in another branch."""

    def project(self, x: Tensor) -> Tensor:
        return self.inner.q(x) if x.dim() > 1 else F.linear(x, self.inner.q.weight)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    ("make", "targets", "reader"),
    [
        (
            Encoder,
            ["linear1"],
            r"0.linear1.*TransformerEncoderLayer.*set_fastpath_enabled\(False\)",
        ),
        (Encoder, "all-linear", r"encoder.layers.0.linear1.*TransformerEncoderLayer"),
        (OwnProduct, ["q"], r"inner.q .*OwnProduct"),
        (OwnProduct, "all-linear", r"inner.q .*OwnProduct"),
        (OwnParameters, ["q"], r"inner.q .*OwnParameters"),
        (Attention, ["out_proj"], r"attention.out_proj"),
    ],
)
def test_a_layer_whose_weight_another_module_reads_is_refused_by_name(
    make: Callable[[], nn.Module], targets: list[str] | str, reader: str
) -> None:
    model = make()
    with pytest.raises(UserError, match=f"target_modules.*{reader}"):
        inject_adapters(model, LoraConfig(target_modules=targets))
    assert not lora_layers(model)


def test_the_encoder_of_pytorch_takes_adapters_while_its_fast_path_is_off() -> None:
    x = torch.randn(2, 5, 16)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model = inject_adapters(Encoder(), LoraConfig(r=2, target_modules=["linear1", "linear2"]))
        with torch.no_grad():
            for layer in lora_layers(model).values():
                layer.adapters["default"].lora_B.normal_()
            trained = model.train()(x)
            assert torch.allclose(model.eval()(x), trained, atol=1e-6)
            without = copy.deepcopy(model)
            for layer in lora_layers(without).values():
                layer.enable(False)
            assert not torch.allclose(without(x), trained, atol=1e-2)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def test_a_head_and_a_layer_whose_dtype_alone_is_read_take_adapters() -> None:
    assert set(lora_layers(inject_adapters(Encoder(), LoraConfig(target_modules=["head"])))) == {"head"}
    assert set(lora_layers(inject_adapters(OwnProduct(), LoraConfig(target_modules=["v"])))) == {"v"}


def test_a_layer_that_one_branch_calls_takes_adapters() -> None:
    assert set(lora_layers(inject_adapters(TwoBranches(), LoraConfig(target_modules=["q"])))) == {"inner.q"}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_of_transformers_is_refused(family: str) -> None:
    assert lora_layers(inject_adapters(make_family(family), LoraConfig(target_modules="all-linear")))
