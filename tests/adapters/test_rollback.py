"""A change that fails half-way leaves logits, structure, active adapters and trainable weights unchanged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import logits, make_t5, randomize
from torch import nn

from lora_hf import LoraConfig, adapter_rows, inject_adapters, load_adapter, save_adapter, set_adapter
from lora_hf.adapters.model_state import lora_layers
from lora_hf.adapters.rollback import rolled_back
from lora_hf.errors import UserError

TWICE = {"encoder": [[0, 2], [0, 2]]}
LATE = {
    "a start of too high a rank": {"r": 20, "init_lora_weights": "pissa", "rank_pattern": {"wo": 1000}},
    "a target that is none": {"target_modules": ["nope"]},
    "a module to save that is none": {"modules_to_save": ["nope"]},
}


def state(model: nn.Module, batch: dict) -> tuple[Any, ...]:
    active = {name: dict(layer.active) for name, layer in lora_layers(model).items()}
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    return [str(model), str(model.config), active, trains], logits(model, batch)


@pytest.fixture
def model() -> nn.Module:
    model = inject_adapters(make_t5(), LoraConfig(r=3, lora_alpha=5), "a")
    randomize(model)
    return model


@pytest.mark.parametrize("why", LATE)
@pytest.mark.parametrize("replicated", [False, True])
def test_a_failed_injection_restores_the_model(
    why: str, replicated: bool, batch: dict, model: nn.Module
) -> None:
    model = make_t5() if replicated else model
    before = state(model, batch)
    fields = {"target_modules": ["q", "wo"], "layer_replication": TWICE if replicated else None} | LATE[why]
    with pytest.raises(UserError):
        inject_adapters(model, LoraConfig(**fields), "b")
    after = state(model, batch)
    assert after[0] == before[0] and torch.equal(after[1], before[1])


def test_a_failed_load_of_a_replicated_adapter_restores_the_model(tmp_path: Path, batch: dict) -> None:
    deeper = inject_adapters(make_t5(), LoraConfig(layer_replication=TWICE))
    file = save_adapter(deeper, tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.popitem()
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "lora_hf.json").unlink()
    model = make_t5()
    before = state(model, batch)
    with pytest.raises(UserError, match="1 missing"):
        load_adapter(model, tmp_path)
    after = state(model, batch)
    assert after[0] == before[0] and torch.equal(after[1], before[1])
    inject_adapters(model, LoraConfig())  # it can still be used


def test_two_adapters_with_copies_of_one_layer_cannot_be_active_together(batch: dict) -> None:
    model = make_t5()
    for name in "ab":
        inject_adapters(model, LoraConfig(modules_to_save=["lm_head"]), name)
    set_adapter(model, "a")
    before = state(model, batch)
    with pytest.raises(UserError, match="each have their own copy"):
        set_adapter(model, ["b", "a"])
    after = state(model, batch)
    assert after[0] == before[0] and torch.equal(after[1], before[1])


def test_a_layer_that_another_adapter_sits_on_cannot_be_copied(model: nn.Module, batch: dict) -> None:
    before = state(model, batch)
    with pytest.raises(UserError, match="contains a layer with another adapter"):
        inject_adapters(model, LoraConfig(target_modules=["wo"], modules_to_save=["SelfAttention.q"]), "b")
    assert state(model, batch)[0] == before[0]


def test_a_model_with_a_baseline_is_refused_by_name(model: nn.Module) -> None:
    from lora_hf.baselines.prompt_tuning import add_prompt

    other = make_t5()
    add_prompt(other, 3, "vocab")
    with pytest.raises(UserError, match="already has the weights of method 'prompt_tuning'"):
        inject_adapters(other, LoraConfig())


def test_loading_an_adapter_does_not_change_what_the_others_train(tmp_path: Path, model: nn.Module) -> None:
    folder = save_adapter(model, tmp_path, "a")
    fresh = load_adapter(make_t5(), folder, "a")
    load_adapter(fresh, folder, "b", trainable=True)
    assert {name.split(".")[-2] for name, p in fresh.named_parameters() if p.requires_grad} == {"b"}


def test_invalid_weights_and_an_empty_list_of_rows_are_refused(model: nn.Module) -> None:
    for weight in (float("nan"), "x", None):
        with pytest.raises(UserError, match="weight of adapter 'a' is .*; give a finite number"):
            set_adapter(model, {"a": weight})
    with pytest.raises(UserError, match="adapter_rows: names is empty"), adapter_rows(model, []):
        pass


def test_a_position_embedding_is_refused_in_a_mixed_batch() -> None:
    model = inject_adapters(make_t5(), LoraConfig(target_modules=["relative_attention_bias"], r=2), "a")
    with pytest.raises(UserError, match="relative_attention_bias applies to the whole batch"):
        with adapter_rows(model, ["a", None]):
            pass
    words = inject_adapters(make_t5(), LoraConfig(target_modules=["shared"], r=2), "a")
    with adapter_rows(copy.deepcopy(words), ["a", None]):
        pass


def test_a_trial_that_succeeds_leaves_no_trace(batch: dict) -> None:
    model = make_t5()
    before = state(model, batch)
    with rolled_back(model):
        inject_adapters(model, LoraConfig(layer_replication=TWICE))
        randomize(model)
        assert str(model) != before[0][0]
    after = state(model, batch)
    assert after[0] == before[0] and torch.equal(after[1], before[1])


def test_a_rollback_restores_the_dicts_that_handles_of_hooks_refer_to(batch: dict) -> None:
    model = make_t5()
    before, calls = state(model, batch), []
    handle = model.encoder.register_forward_hook(lambda *args: calls.append(1))
    with rolled_back(model):
        inject_adapters(model, LoraConfig(r=2))
        later = model.decoder.register_forward_hook(lambda *args: calls.append(2))
    logits(model, batch)
    assert calls == [1]
    later.remove()
    handle.remove()
    assert torch.equal(logits(model, batch), before[1]) and calls == [1]
    assert not model.encoder._forward_hooks


def test_a_rollback_restores_dicts_of_dicts_and_lists_in_place() -> None:
    model = make_t5()
    model.config.task_specific_params = {"a": {"b": 1}}
    blocks, held = model.encoder.block, model.config.task_specific_params
    modules, inner = blocks._modules, held["a"]
    with pytest.raises(ValueError), rolled_back(model):
        del blocks._modules["1"]
        held["c"] = inner["b"] = 2
        raise ValueError
    assert blocks._modules is modules and list(modules) == ["0", "1"]
    assert model.config.task_specific_params is held and held == {"a": {"b": 1}} and held["a"] is inner
