"""A batch whose rows have adapters of their own: right, or refused by a run of the model itself."""

from typing import Any

import pytest
import torch
from support.families import make_family
from support.models import TOKENS, make_t5, randomize
from torch import Tensor, nn
from transformers import FSMTConfig, FSMTForConditionalGeneration

from lora_hf import LoraConfig, UserError, adapter_rows, inject_adapters, set_adapter
from lora_hf.adapters.model_state import model_state


def make_fsmt() -> Any:
    shape = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIZES.items()}
    config = FSMTConfig(langs=["en", "de"], src_vocab_size=TOKENS, tgt_vocab_size=TOKENS, d_model=32, **shape)
    return FSMTForConditionalGeneration(config).eval()


SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 48}


def with_two(model: Any, targets: list[str]) -> Any:
    for name in ("a", "b"):
        inject_adapters(model, LoraConfig(r=2, lora_alpha=6, target_modules=targets), name)
    randomize(model)
    return model


@pytest.mark.parametrize(
    ("make", "targets", "says"),
    [
        (lambda: make_family("LED"), ["query"], r"longformer_self_attn.query gets \(16, 2, 32\) for a batch"),
        (
            make_fsmt,
            ["q_proj"],
            r"q_proj gets \(5, 2, 32\) for a batch of 2 rows: its first dimension is not",
        ),
    ],
)
def test_a_layer_whose_first_dimension_is_not_the_batch_is_refused_by_name(
    make: Any, targets: list[str], says: str
) -> None:
    model = with_two(make(), targets)
    with pytest.raises(UserError, match=f"{says}.*use set_adapter"), adapter_rows(model, ["a", "b"]):
        pass
    with adapter_rows(model, ["a", "a"]):  # all rows alike
        pass


@pytest.mark.parametrize("family", ["BigBirdPegasus", "MBart"])
def test_other_families_are_as_before_the_probe(family: str) -> None:
    fields = {"attention_type": "block_sparse"} if family == "BigBirdPegasus" else {}
    model = with_two(make_family(family, **fields), ["fc1"])
    kinds = [type(module) for module in model.modules()]
    with adapter_rows(model, ["a", "b"]):
        pass
    assert [type(module) for module in model.modules()] == kinds


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q = nn.BatchNorm1d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(self.norm(x))


def test_rows_that_meet_in_batch_normalization_are_refused_in_training_mode_alone() -> None:
    model, x = with_two(Normalized(), ["q"]), torch.randn(2, 4)
    model.eval()
    with adapter_rows(model, ["a", "b"]):
        mixed = model(x)
    for row, name in enumerate("ab"):
        set_adapter(model, name)
        assert torch.allclose(mixed[row], model(x)[row], atol=1e-6)
    model.train()
    mean = model.norm.running_mean.clone()
    with pytest.raises(UserError, match=r"each other's values before q, .*call model.eval\(\)"):
        with adapter_rows(model, ["a", "b"]):
            model(x)
    assert torch.equal(model.norm.running_mean, mean)


def test_a_model_is_probed_once(batch: dict) -> None:
    model = with_two(make_t5(), ["q"])
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *args: calls.append(1))
    for _ in range(2):
        with adapter_rows(model, ["a", "b", None]), torch.no_grad():
            model(**batch)
    assert len(calls) == 3 + 2 and len(model_state(model).rows_probed) == 1
