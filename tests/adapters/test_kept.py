"""Merged and packed weights that are kept: made once, and again when anything that they depend on changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.server_process import DIALOGUES, save_adapters
from torch import nn

import lora_hf
from lora_hf.adapters.kept import KeptWeights
from lora_hf.adapters.layer import LoraLayer
from lora_hf.config import ModelConfig
from lora_hf.fast import packed
from lora_hf.saved.inference import InferenceModel


def test_a_result_is_kept_until_a_tensor_or_the_setting_changes() -> None:
    kept, made = KeptWeights(), []
    weight, other = nn.Parameter(torch.ones(2)), torch.zeros(2)

    def of(*tensors: Any, setting: Any = None) -> int:
        kept.of("layer", tensors, lambda: made.append(1), setting)
        return len(made)

    assert [of(weight), of(weight)] == [1, 1]
    assert [of(weight, setting={"a": 1.0}), of(weight, setting={"a": 1.0}), of(weight)] == [2, 2, 3]
    with torch.no_grad():
        weight += 1
    assert [of(weight), of(weight)] == [4, 4]
    weight.data = torch.zeros(2)
    assert [of(weight), of(weight)] == [5, 5]
    assert [of(other), of(other, weight)] == [6, 7]
    with torch.inference_mode():
        unwatched = torch.ones(2)
    assert [of(unwatched), of(unwatched)] == [8, 9]
    assert "layer" in kept
    kept.clear()
    assert "layer" not in kept


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_of_an_optimizer_is_a_change(fused: bool) -> None:
    """torch's fused kernels, the Trainer's default, do not count their own."""
    weight, kept = nn.Parameter(torch.ones(2)), KeptWeights()
    assert kept.of("layer", [weight], weight.sum).item() == 2
    weight.grad, other = torch.ones(2), nn.Parameter(torch.ones(2))
    torch.optim.AdamW([weight, other], lr=0.5, weight_decay=0.0, fused=fused).step()
    assert other._version == 0  # a graph that is kept needs it
    assert kept.of("layer", [weight], weight.sum).item() == pytest.approx(1, abs=1e-6)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is merged and packed, in order."""
    seen: list[str] = []

    def counted(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            seen.append(kind)
            return function(*given)

        return call

    monkeypatch.setattr(packed, "pack", counted("packed", packed.pack))
    monkeypatch.setattr(LoraLayer, "merged_weight", counted("merged", LoraLayer.merged_weight))
    return seen


def test_a_loop_of_single_texts_merges_and_packs_once(made: list[str], tmp_path: Any) -> None:
    folder = save_adapters(tmp_path)
    model = lora_hf.load(folder / "a")
    model.add_adapter(folder / "b", "b")

    def made_by(adapter: str = "default") -> tuple[str, int, int]:
        made.clear()
        text = model.summarize(DIALOGUES[0], adapter)
        return text, made.count("merged"), made.count("packed")

    first, merged, laid_out = made_by()
    assert merged and laid_out > merged
    assert made_by() == (first, 0, 0)

    other, merged_of_b, packed_of_b = made_by("b")
    alone = InferenceModel(ModelConfig())
    alone.add_adapter(folder / "b")
    assert other == alone.summarize(DIALOGUES[0]) != first
    assert merged_of_b and packed_of_b < laid_out  # only the layers that it changes
    assert made_by("b") == (other, 0, 0)
    assert made_by()[0] == first

    weight = next(p for name, p in model.model.named_parameters() if "default" in name)
    with torch.no_grad():
        weight += 0.5
    changed, again, _ = made_by()
    assert again == 1 and made_by() == (changed, 0, 0)
    lora_hf.set_adapter(model.model, {"default": 0.5, "b": 0.5})  # generate chooses its own
    assert made_by()[0] == changed
    state = {name: value.clone() for name, value in alone.model.state_dict().items()}
    alone.summarize(DIALOGUES[0])
    assert all(torch.equal(value, state[name]) for name, value in alone.model.state_dict().items())
