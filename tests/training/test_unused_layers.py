"""Adapters without effect: an error at the first step, or a warning at the end of the training."""

from pathlib import Path
from typing import Any

import pytest
from support.families import make_family
from support.models import make_t5
from support.tiny_trainer import arguments, make_trainer
from torch import Tensor
from torch.nn import functional as F

from lora_hf import LoraConfig, UserError, inject_adapters


def product_of(layer: Any, x: Tensor) -> Tensor:
    """Compute as a helper function does that takes the layer."""
    return F.linear(x, layer.weight, layer.bias)


def with_reader() -> Any:
    """Return a T5 of which one feed-forward layer computes by itself, in forms that its source hides."""
    model = make_t5()
    layer = model.encoder.block[1].layer[1].DenseReluDense

    class Reader(type(layer)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            first, second = [self.wi_0, self.wi_1]
            hidden = F.gelu(product_of(first, hidden_states)) * F.linear(hidden_states, second.weight)
            return self.wo(hidden)

    layer.__class__ = Reader
    return model


def test_a_layer_that_the_model_reads_and_does_not_call_ends_the_training_by_name(tmp_path: Path) -> None:
    model = inject_adapters(with_reader(), LoraConfig(r=2, target_modules=["wi_0", "wi_1", "wo"]))
    place = "encoder.block.1.layer.1.DenseReluDense"
    with pytest.raises(UserError, match=rf"adapters on {place}.wi_0, {place}.wi_1 have no effect"):
        make_trainer(model, arguments(tmp_path, max_steps=2)).train()
    assert not list(tmp_path.glob("checkpoint*"))


def test_a_layer_that_no_step_uses_is_named_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LED's projections for global attention, which a batch without a global mask does not use."""
    model = inject_adapters(make_family("LED"), LoraConfig(r=2, target_modules=["query", "query_global"]))
    make_trainer(model, arguments(tmp_path, max_steps=2)).train()
    assert "2 of 4 layers with adapters were not used in this training" in caplog.text
    assert "led.encoder.layers.0.self_attn.longformer_self_attn.query_global" in caplog.text
