"""Injecting into a whole model: wrapped layers, trainable weights, and returning to the base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from support.models import MODELS, make_t5, randomize
from torch import nn

from lora_hf import (
    LoraConfig,
    count_parameters,
    delete_adapter,
    disable_adapters,
    inject_adapters,
    load_adapter,
    merge_adapters,
    merge_and_unload,
    save_adapter,
    set_adapter,
    unmerge_adapters,
)
from lora_hf.adapters.active import check_trainable
from lora_hf.adapters.model_state import adapter_configs, lora_layers
from lora_hf.baselines import add_bottlenecks
from lora_hf.errors import UserError
from lora_hf.models.flan_t5 import random_flan_t5

CONFIG = LoraConfig(r=4, lora_alpha=10)


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("kind", MODELS)
def test_at_initialization_each_architecture_s_outputs_are_bit_for_bit_the_base_s(
    kind: str, batch: dict
) -> None:
    make, targets = MODELS[kind]
    model = make()
    before = logits(model, batch)
    inject_adapters(model, LoraConfig(r=4, lora_alpha=10, target_modules=targets))
    assert torch.equal(logits(model, batch), before)
    randomize(model)
    assert not torch.allclose(logits(model, batch), before, atol=1e-3)


def test_all_three_kinds_of_attention_get_adapters_and_only_they_train(t5: nn.Module) -> None:
    inject_adapters(t5, CONFIG)
    names = list(lora_layers(t5))
    assert len(names) == 2 * (2 + 2 + 2)  # q and v of encoder self-, decoder self- and cross-attention
    assert {n.split(".")[0] + "." + n.split(".")[-2] for n in names} == {
        "encoder.SelfAttention",
        "decoder.SelfAttention",
        "decoder.EncDecAttention",
    }
    assert all(("lora_A" in n or "lora_B" in n) == p.requires_grad for n, p in t5.named_parameters())


@pytest.mark.parametrize(
    ("shape", "r", "total", "trained"),
    [("small", 8, 76_961_152, 344_064), ("base", 32, 247_577_856, 3_538_944)],
)
def test_flan_t5_has_its_known_number_of_weights_and_of_trained_ones(
    shape: str, r: int, total: int, trained: int
) -> None:
    with torch.device("meta"):
        model = random_flan_t5(shape)
    assert count_parameters(model)[1] == total
    inject_adapters(model, LoraConfig(r=r, lora_alpha=32))
    assert count_parameters(model) == (trained, total + trained)  # base: 3,538,944 of 251,116,800


def test_the_textbook_layer_goes_from_32768_to_4608_weights() -> None:
    layer = nn.Sequential(nn.Linear(512, 64, bias=False))
    assert count_parameters(layer)[0] == 32_768
    inject_adapters(layer, LoraConfig(r=8, target_modules=["0"]))
    assert count_parameters(layer)[0] == 4_608


@pytest.mark.parametrize("kind", MODELS)
def test_merging_keeps_the_outputs_and_unmerging_the_bits(kind: str, batch: dict) -> None:
    make, targets = MODELS[kind]
    model = inject_adapters(make(), LoraConfig(r=4, lora_alpha=10, target_modules=targets))
    randomize(model)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    unmerged = logits(model, batch)
    merge_adapters(model)
    torch.testing.assert_close(logits(model, batch), unmerged, rtol=1e-4, atol=1e-4)
    unmerge_adapters(model)
    assert torch.equal(logits(model, batch), unmerged)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_merging_twice_is_refused_and_harmless(t5: nn.Module, batch: dict) -> None:
    inject_adapters(t5, CONFIG)
    randomize(t5)
    merge_adapters(t5)
    merged = logits(t5, batch)
    with pytest.raises(RuntimeError, match="unmerge_adapters first"):
        merge_adapters(t5)
    assert torch.equal(logits(t5, batch), merged)


def test_unloading_gives_a_plain_model_with_the_merged_outputs(batch: dict) -> None:
    plain_names = set(make_t5().state_dict())
    model = inject_adapters(make_t5(), CONFIG)
    randomize(model)
    unmerged = logits(model, batch)
    merge_and_unload(model)
    assert not lora_layers(model) and set(model.state_dict()) == plain_names
    torch.testing.assert_close(logits(model, batch), unmerged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merged", [False, True])
def test_disabling_gives_the_base_and_then_restores_the_active_adapters(merged: bool, batch: dict) -> None:
    base = logits(make_t5(), batch)
    model = inject_adapters(make_t5(), CONFIG)
    randomize(model)
    if merged:
        merge_adapters(model)
    adapted = logits(model, batch)
    with disable_adapters(model):
        assert torch.equal(logits(model, batch), base)
    assert torch.equal(logits(model, batch), adapted)


def test_two_adapters_switch_add_up_and_can_be_deleted(t5: nn.Module, batch: dict) -> None:
    base = logits(t5, batch)
    inject_adapters(t5, CONFIG, "first")
    randomize(t5, seed=1)
    first = logits(t5, batch)
    inject_adapters(t5, LoraConfig(r=2, lora_alpha=3, target_modules=["k"]), "second")
    assert torch.equal(logits(t5, batch), base)
    set_adapter(t5, "first")
    assert torch.equal(logits(t5, batch), first)
    trainable = {n for n, p in t5.named_parameters() if p.requires_grad}
    assert trainable and all(".first." in n for n in trainable)
    set_adapter(t5, ["first", "second"])
    assert torch.equal(logits(t5, batch), first)  # the second one's B is zero still
    delete_adapter(t5, "first")
    assert torch.equal(logits(t5, batch), base)
    delete_adapter(t5, "second")
    assert not lora_layers(t5)


def test_several_adapters_merge_against_the_same_weight(t5: nn.Module, batch: dict) -> None:
    for name in ("first", "second"):
        inject_adapters(t5, CONFIG, name)
    randomize(t5)
    set_adapter(t5, ["first", "second"])
    unmerged = logits(t5, batch)
    merge_adapters(t5)
    torch.testing.assert_close(logits(t5, batch), unmerged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["query"],
            r"\['query'\] matched no layer of .*'k', 'lm_head', 'o', 'q', .*'v', 'wi_0', 'wi_1', 'wo'\]",
        ),
        (["q", "vv"], r"\['vv'\] matched no layer.*Did you mean 'v'"),
        (r".*\.qq", r"matched no layer"),
        (["SelfAttention"], r"T5Attention, which cannot take an adapter; name linear, convolution"),
    ],
)
def test_a_target_that_fits_nothing_is_an_error_and_changes_nothing(
    t5: nn.Module, targets: list[str] | str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        inject_adapters(t5, LoraConfig(target_modules=targets))
    assert not lora_layers(t5) and all(p.requires_grad for p in t5.parameters())


def test_a_regular_expression_must_match_the_full_name(t5: nn.Module) -> None:
    inject_adapters(t5, LoraConfig(target_modules=r"decoder\..*EncDecAttention\.[qv]"))
    assert len(lora_layers(t5)) == 4


@pytest.mark.parametrize("name", ["", "a.b", "../x", "keys", "x" * 65, "with space"])
def test_names_that_cannot_be_folders_or_modules_are_refused(t5: nn.Module, name: str) -> None:
    with pytest.raises(UserError, match="adapter name"):
        inject_adapters(t5, CONFIG, name)


def test_a_name_already_taken_or_unknown_is_an_error(t5: nn.Module) -> None:
    inject_adapters(t5, CONFIG)
    with pytest.raises(UserError, match="already has an adapter 'default'"):
        inject_adapters(t5, CONFIG)
    with pytest.raises(UserError, match=r"no adapter 'x' in the model; it has \['default'\]"):
        set_adapter(t5, "x")
    with pytest.raises(UserError, match="no adapter 'x' to delete"):
        delete_adapter(t5, "x")


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 0},
        {"r": True},
        {"r": 2.5},
        {"lora_alpha": 0},
        {"lora_alpha": float("inf")},
        {"lora_dropout": 1.0},
        {"target_modules": []},
        {"target_modules": "("},
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_field(fields: dict) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(fields))}"):
        LoraConfig(**fields)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: save_adapter(model, "never"),
        merge_and_unload,
        lambda model: set_adapter(model, "default"),
        lambda model: delete_adapter(model, "default"),
        lambda model: inject_adapters(model, CONFIG, "other"),
        check_trainable,
    ],
)
def test_adapters_on_a_part_are_not_overlooked_by_functions_on_another(
    call: Callable[[Any], Any], t5: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inject_adapters(t5.encoder, CONFIG)
    with pytest.raises(UserError, match=r"\['default'\] are on a part of the model: .* model.encoder"):
        call(t5)
    whole: Any = inject_adapters(make_t5(), CONFIG)
    with pytest.raises(UserError, match="this T5Stack is a part of a model with adapters: give the whole"):
        call(whole.encoder)
    assert set(adapter_configs(t5.encoder)) == set(adapter_configs(whole)) == {"default"}
    assert not Path("never").exists()


def test_a_model_with_layers_of_peft_is_refused(t5: nn.Module, tmp_path: Path) -> None:
    save_adapter(inject_adapters(make_t5(), CONFIG), tmp_path)
    theirs = peft.get_peft_model(t5, peft.LoraConfig(target_modules=["q"], task_type="SEQ_2_SEQ_LM"))
    for model in (theirs, theirs.get_base_model()):
        for add in (
            lambda model: inject_adapters(model, LoraConfig(target_modules=["v"])),
            lambda model: load_adapter(model, tmp_path),
            lambda model: add_bottlenecks(model, 4, "relu"),
        ):
            with pytest.raises(UserError, match=r"adapters of PEFT already .*merge_and_unload\(\)"):
                add(model)
    inject_adapters(theirs.merge_and_unload(), CONFIG)


WRONG_TYPES: dict[str, tuple[Callable[[], Any], str]] = {
    "PEFT's config": (
        lambda: inject_adapters(make_t5(), peft.LoraConfig(r=4)),  # type: ignore[arg-type]
        r"config is a peft\..*LoraConfig: give a lora_hf.LoraConfig, whose fields have PEFT's names",
    ),
    "a dict": (lambda: inject_adapters(make_t5(), {"r": 4}), "config is a builtins.dict: give a lora_hf"),  # type: ignore[arg-type]
    "no model": (
        lambda: inject_adapters(None, CONFIG),
        "model is a builtins.NoneType: give a torch.nn.Module",
    ),  # type: ignore[type-var]
    "a number for a name": (lambda: inject_adapters(make_t5(), CONFIG, 5), "adapter name 5: write 1 to 64"),  # type: ignore[arg-type]
    "no names": (
        lambda: set_adapter(inject_adapters(make_t5(), CONFIG), None),  # type: ignore[arg-type]
        "names=None is neither the name of an adapter, nor a list of names, nor a dict of names to weights",
    ),
    "no folder": (
        lambda: load_adapter(make_t5(), None),
        "directory=None is not a folder: pass a str or a Path",
    ),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("call", "says"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_an_argument_of_a_wrong_type_is_one_error_that_names_it(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        call()
