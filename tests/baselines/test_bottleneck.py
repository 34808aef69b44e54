"""Bottleneck adapters: where they sit, what they add, and that they start as nothing."""

import pytest
import torch
import torch.nn.functional as F
from support.families import EVERY, family_settings
from support.models import MODELS, make_t5
from support.new_weights import randomize
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from lora_hf.baselines.bottleneck import Bottleneck, add_bottlenecks, find_sublayers
from lora_hf.baselines.checkpoint_io import new_weights
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.models.load import load_model


def test_the_sublayers_of_t5_and_bart_end_in_their_output_projections() -> None:
    t5, bart = (set(find_sublayers(MODELS[kind][0]())) for kind in ("t5", "bart"))
    assert {name for name in t5 if name.startswith("decoder.block.1.")} == {
        f"decoder.block.1.layer.{name}"
        for name in ("0.SelfAttention.o", "1.EncDecAttention.o", "2.DenseReluDense.wo")
    }
    assert {name for name in bart if name.startswith("model.decoder.layers.1.")} == {
        f"model.decoder.layers.1.{name}" for name in ("self_attn.out_proj", "encoder_attn.out_proj", "fc2")
    }
    assert len(t5) == len(bart) == 2 * 2 + 2 * 3


OUTPUTS = ("o", "wo", "out_proj", "fc2", "o_proj", "down_proj", "output", "output.dense", "c_proj")
"""Names of the projections whose outputs are added to the residual stream, in all families."""


@pytest.mark.parametrize("family", EVERY)
def test_every_attention_and_feed_forward_of_every_family_has_one_at_its_output(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(family_settings(family))
    found = find_sublayers(model)
    assert all(name.endswith(tuple(f".{end}" for end in OUTPUTS)) for name in found)
    assert not [name for name in found if any(part in name for part in ("vision", "router", "pooler"))]
    dense = [name for name in found if "experts" not in name]
    sublayers = {"T5Gemma2": 2 * 2 + 2 * 2, "ProphetNet": 2 + 3}  # merged attention; one block in each stack
    moe = {"SwitchTransformers": 2 + 2 + 1 + 2 * 2 + 1, "NllbMoe": 2 + 1 + 2 * 2 + 1}
    if family not in moe:
        assert len(dense) == len(found) == sublayers.get(family, 2 * 2 + 2 * 3)
    else:  # an expert has one of its own
        assert len(found) > len(dense) and sum(name.endswith("fc2") or ".wo" in name for name in found) >= 4


@pytest.mark.parametrize("store", [{}, {"quant_method": "hqq"}, {"quant_method": "hqq", "quantize_wo": True}])
def test_every_storage_format_has_the_dense_model_s_sublayers_and_trains_them(store: dict) -> None:
    model = load_model(ModelConfig(load_in_4bit=True, **store), torch.device("cpu"))
    sublayers = list(find_sublayers(load_model(ModelConfig(), torch.device("cpu"))))
    assert list(find_sublayers(model)) == sublayers
    add_bottlenecks(model, 4, "gelu")
    ids = torch.arange(3, 12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    ups = [weight.grad for name, weight in new_weights(model).items() if name.endswith("up")]
    assert len(ups) == len(sublayers) and all(grad.abs().sum() > 0 for grad in ups)


@pytest.mark.parametrize("non_linearity", ["gelu", "relu", "silu", "tanh"])
def test_an_adapter_is_the_formula_of_the_paper(non_linearity: str) -> None:
    torch.manual_seed(0)
    adapter = Bottleneck(6, 3, non_linearity, torch.device("cpu"))
    randomize(adapter)
    h = torch.randn(2, 5, 6)
    expected = torch.empty_like(h)
    f = {"gelu": nn.GELU(), "relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}[non_linearity]
    for i in range(2):
        for j in range(5):
            expected[i, j] = adapter.up @ f(adapter.down @ h[i, j] + adapter.down_bias) + adapter.up_bias
    torch.testing.assert_close(adapter(h), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_the_initial_output_is_the_base_s_bit_for_bit_and_only_new_weights_train(
    kind: str, batch: dict
) -> None:
    model = MODELS[kind][0]()
    with torch.no_grad():  # attention takes another kernel where a weight of it learns
        before = model(**batch).logits
        add_bottlenecks(model, 4, "gelu")
        assert torch.equal(model(**batch).logits, before)
    model(**batch).loss.backward()
    new = {id(p) for p in new_weights(model).values()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == new
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in new)
    assert all(p.grad.abs().sum() > 0 for name, p in new_weights(model).items() if name.endswith("up"))


def test_the_weights_are_as_many_as_counted_by_hand() -> None:
    model = make_t5()  # d_model 32; 2 blocks of 2 sublayers and 2 of 3: 10 adapters
    add_bottlenecks(model, 5, "relu")
    assert sum(p.numel() for p in new_weights(model).values()) == 10 * (2 * 5 * 32 + 5 + 32) == 3570
    assert all(0 < p.abs().max() <= 0.02 for name, p in new_weights(model).items() if name.endswith("down"))


def test_the_feed_forward_s_output_is_adapted_before_the_residual_sum(batch: dict) -> None:
    model = make_t5()
    add_bottlenecks(model, 4, "tanh")
    randomize(model)
    sublayer = model.encoder.block[1].layer[1]
    adapter, inner = sublayer.DenseReluDense.wo.bottleneck, sublayer.DenseReluDense
    x = torch.randn(2, 3, 32)
    normed = sublayer.layer_norm(x)
    h = (inner.act(inner.wi_0(normed)) * inner.wi_1(normed)) @ inner.wo.base_layer.weight.T
    adapted = h + F.linear(
        torch.tanh(F.linear(h, adapter.down, adapter.down_bias)), adapter.up, adapter.up_bias
    )
    torch.testing.assert_close(sublayer(x), x + adapted)


def test_a_bfloat16_base_keeps_its_dtype_and_the_adapters_are_float32(batch: dict) -> None:
    model = make_t5().to(torch.bfloat16)
    with torch.no_grad():
        before = model(**batch).logits
        add_bottlenecks(model, 4, "gelu")
        assert torch.equal(model(**batch).logits, before) and before.dtype == torch.bfloat16
    assert {p.dtype for p in new_weights(model).values()} == {torch.float32}


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="Sequential has no stack of blocks"):
        add_bottlenecks(nn.Sequential(nn.Linear(2, 3)), 4, "gelu")
