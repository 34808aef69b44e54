"""Several adapters on one base: switched, weighted, side by side in a batch, and combined into one."""

import copy
import sys
from itertools import product
from pathlib import Path
from types import FrameType

import peft
import pytest
import torch
from support.models import make_t5, randomize
from support.selection import slow_except
from torch import Tensor, nn

from lora_hf import (
    LoraConfig,
    adapter_rows,
    combine_adapters,
    delete_adapter,
    disable_adapters,
    inject_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
    set_adapter,
    unmerge_adapters,
)
from lora_hf.adapters.active import shrinking_batch
from lora_hf.adapters.model_state import lora_layers
from lora_hf.errors import UserError
from lora_hf.models.flan_t5 import random_flan_t5

KINDS = {
    "lora": {"r": 3},
    "rslora": {"r": 2, "use_rslora": True, "target_modules": ["q", "wo"]},
    "pissa": {"r": 4, "init_lora_weights": "pissa"},
    "dora": {"r": 3, "use_dora": True},
}


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def alone(kind: str) -> nn.Module:
    """A model with one adapter, its weights those that it has in company."""
    model = inject_adapters(make_t5(), LoraConfig(lora_alpha=5, **KINDS[kind]), kind)
    torch.manual_seed(list(KINDS).index(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def as_built() -> nn.Module:
    model = make_t5()
    for kind in KINDS:
        inject_adapters(model, LoraConfig(lora_alpha=5, **KINDS[kind]), kind)
        for path, layer in lora_layers(alone(kind)).items():
            lora_layers(model)[path].adapters[kind].load_state_dict(layer.adapters[kind].state_dict())
    return model


@pytest.fixture
def crowd(as_built: nn.Module) -> nn.Module:
    """A model with an adapter of each kind."""
    return copy.deepcopy(as_built)


def test_an_adapter_gives_the_same_outputs_alone_and_beside_others(crowd: nn.Module, batch: dict) -> None:
    for kind in KINDS:
        set_adapter(crowd, kind)
        assert torch.equal(logits(crowd, batch), logits(alone(kind), batch))
        trained = {n for n, p in crowd.named_parameters() if p.requires_grad}
        assert trained and all(f".{kind}." in name for name in trained)
    with disable_adapters(crowd):
        assert torch.equal(logits(crowd, batch), logits(make_t5(), batch))


def test_several_at_once_are_the_weighted_sum_of_their_updates(crowd: nn.Module, batch: dict) -> None:
    weights = {"lora": 0.5, "pissa": -2.0, "dora": 1.0}
    set_adapter(crowd, weights)
    reference = make_t5()
    for path, layer in lora_layers(crowd).items():
        W = reference.get_submodule(path).weight.data
        deltas = {n: layer.adapters[n].delta(W) for n in weights if n in layer.adapters}
        reference.get_submodule(path).weight.data = W + sum(weights[n] * d for n, d in deltas.items())
    torch.testing.assert_close(logits(crowd, batch), logits(reference, batch), rtol=1e-4, atol=1e-4)
    unmerged = logits(crowd, batch)
    merge_adapters(crowd)
    torch.testing.assert_close(logits(crowd, batch), unmerged, rtol=1e-4, atol=1e-4)
    unmerge_adapters(crowd)
    assert torch.equal(logits(crowd, batch), unmerged)


def test_deleting_an_adapter_does_not_change_the_others(crowd: nn.Module, batch: dict) -> None:
    set_adapter(crowd, "rslora")
    before = logits(crowd, batch)
    for kind in ("lora", "pissa", "dora"):
        delete_adapter(crowd, kind)
    assert torch.equal(logits(crowd, batch), before)
    delete_adapter(crowd, "rslora")
    assert not lora_layers(crowd) and torch.equal(logits(crowd, batch), logits(make_t5(), batch))


ROWS = ["lora", None, "dora", "lora", "pissa", "rslora"]


def sources() -> Tensor:
    ids = torch.randint(2, 90, (len(ROWS), 7), generator=torch.Generator().manual_seed(1))
    ids[2:, -1] = 1
    return ids


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_of_one_batch_generate_with_their_own_adapters(crowd: nn.Module, beams: int) -> None:
    options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "num_return_sequences": beams}
    with adapter_rows(crowd, ROWS):
        mixed = crowd.generate(sources(), **options).view(len(ROWS), beams, -1)
    for i, name in enumerate(ROWS):
        model = make_t5() if name is None else alone(name)
        own = model.generate(sources()[i : i + 1], **options)
        width = min(own.shape[1], mixed.shape[2])
        assert torch.equal(mixed[i][:, :width], own[:, :width]), name
        assert not mixed[i][:, width:].any() and not own[:, width:].any()  # padding is 0


def test_rows_train_each_its_own_adapter(crowd: nn.Module) -> None:
    set_adapter(crowd, ["lora", "dora"])
    batch = {"input_ids": sources(), "labels": sources()}
    with adapter_rows(crowd, ["lora", "dora", "lora", None, None, None]):
        crowd(**batch).loss.backward()
    for kind in ("lora", "dora"):
        assert sum(p.grad.norm() for n, p in crowd.named_parameters() if f".{kind}." in n) > 0
    assert all(p.grad is None for n, p in crowd.named_parameters() if ".pissa." in n)


def test_a_wrong_number_of_rows_or_name_is_an_error(crowd: nn.Module, batch: dict) -> None:
    with pytest.raises(UserError, match="no adapter 'nobody'"), adapter_rows(crowd, ["nobody"]):
        pass
    too_many = ["lora"] * (len(batch["input_ids"]) + 1)
    with (
        pytest.raises(ValueError, match=f"{len(too_many)} adapter names"),
        adapter_rows(crowd, too_many),
    ):
        logits(crowd, batch)


def test_concatenation_is_the_exact_sum_and_svd_its_best_approximation(crowd: nn.Module, batch: dict) -> None:
    weights = {"lora": 0.7, "rslora": -1.5, "pissa": 2.0}
    set_adapter(crowd, weights)
    summed = logits(crowd, batch)
    combine_adapters(crowd, weights, "exact", "cat")
    torch.testing.assert_close(logits(crowd, batch), summed, rtol=1e-4, atol=1e-4)
    combine_adapters(crowd, weights, "nearest", "svd", r=5)
    for layer in lora_layers(crowd).values():
        W = layer.base.dequantize(torch.float32)
        parts = [w * layer.adapters[n].delta(W) for n, w in weights.items() if n in layer.adapters]
        if parts:
            U, S, Vh = torch.linalg.svd(sum(parts), full_matrices=False)
            best = U[:, :5] * S[:5] @ Vh[:5]
            torch.testing.assert_close(layer.adapters["nearest"].delta(W), best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("second", [0.6, -0.6])
@pytest.mark.parametrize("combination", ["cat", "linear", "svd"])
def test_combining_gives_what_peft_s_gives(
    combination: str, second: float, tmp_path: Path, batch: dict
) -> None:
    model, names = make_t5(), ("one", "two")
    for name in names:
        inject_adapters(model, LoraConfig(r=3, lora_alpha=5), name)
    set_adapter(model, names)
    randomize(model)
    for name in names:
        save_adapter(model, tmp_path, name)
    theirs = peft.PeftModel.from_pretrained(make_t5(), tmp_path / "one", adapter_name="one").eval()
    theirs.load_adapter(tmp_path / "two", "two")
    weights = {"one": 0.4, "two": second}
    theirs.add_weighted_adapter(list(names), list(weights.values()), "sum", combination_type=combination)
    theirs.set_adapter("sum")
    combine_adapters(model, weights, "sum", combination)
    torch.testing.assert_close(logits(model, batch), logits(theirs, batch), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_combined_is_refused(crowd: nn.Module) -> None:
    with pytest.raises(UserError, match=r"kind \['DoRA', 'LoRA'\]"):
        combine_adapters(crowd, {"lora": 1, "dora": 1}, "sum")
    with pytest.raises(UserError, match=r"needs one rank.*\[3, 8\]"):
        combine_adapters(crowd, {"lora": 1, "pissa": 1}, "sum", "linear")
    with pytest.raises(UserError, match="combination='mean'"):
        combine_adapters(crowd, {"lora": 1}, "sum", "mean")
    with pytest.raises(UserError, match=r"no adapter \['none'\]"):
        combine_adapters(crowd, {"none": 1}, "sum")
    with pytest.raises(UserError, match=r"r=2.5 requires .*whole number"):
        combine_adapters(crowd, {"lora": 1}, "sum", "svd", r=2.5)
    for weights in (["lora"], "lora", {}, None):
        with pytest.raises(UserError, match="must be a mapping of names to numbers"):
            combine_adapters(crowd, weights, "sum")
    for weight in (float("nan"), float("inf"), "1", None):
        with pytest.raises(UserError, match=rf"weights\['lora'\]={weight!r} must be a finite number"):
            combine_adapters(crowd, {"lora": weight}, "sum")


def test_an_adapter_with_whole_layers_is_not_combined() -> None:
    model = inject_adapters(make_t5(), LoraConfig(), "plain")
    inject_adapters(model, LoraConfig(modules_to_save=["lm_head"]), "whole")
    with pytest.raises(UserError, match=r"adapter 'whole' has modules_to_save=\['lm_head'\]"):
        combine_adapters(model, {"plain": 1, "whole": 1}, "sum")


@pytest.mark.parametrize("combination", ["cat", "linear", "svd"])
def test_a_combination_with_ranks_by_layer_is_saved_and_loaded(
    combination: str, tmp_path: Path, batch: dict
) -> None:
    model = make_t5()
    for name in ("one", "two"):
        inject_adapters(model, LoraConfig(r=4, lora_alpha=10, rank_pattern={"v": 2}), name)
    set_adapter(model, ["one", "two"])
    randomize(model)
    combine_adapters(model, {"one": 0.4, "two": -1.5}, "sum", combination)
    save_adapter(model, tmp_path, "sum")
    again = load_adapter(make_t5(), tmp_path / "sum")
    torch.testing.assert_close(logits(again, batch), logits(model, batch))
    assert not torch.allclose(logits(again, batch), logits(make_t5(), batch), atol=1e-3)


def test_a_switch_on_flan_t5_base_is_a_few_walks_over_its_modules() -> None:
    with torch.device("meta"):
        model = random_flan_t5("base")
        for name in ("a", "b"):
            inject_adapters(model, LoraConfig(r=8), name)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        set_adapter(model, "b")
    finally:
        sys.setprofile(before)
    modules = sum(1 for _ in model.modules())
    assert modules < calls < 40 * modules  # 34 to a module: 4 to 6 ms; the docs promise 10


@pytest.mark.parametrize(
    ("kept", "copies", "frozen"),
    slow_except(
        [([0, 1, 2, 3, 4, 5], 3, False), ([5, 3, 1, 0], 1, True), ([4, 2], 3, True), ([0, 3], 1, False)],
        product([[0, 1, 2, 3, 4, 5], [5, 3, 1, 0], [4, 2], [0, 3], [1]], (1, 3), (False, True)),
    ),
)
def test_a_layer_adds_to_each_row_its_own_adapters_branch(
    crowd: nn.Module, frozen: bool, copies: int, kept: list[int]
) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad(), adapter_rows(crowd, ROWS, frozen=frozen), shrinking_batch(crowd) as keep:
        for layer in lora_layers(crowd).values():
            x = torch.randn(len(ROWS) * copies, 5, layer.base.in_features, generator=generator)
            keep(list(range(len(ROWS))))
            whole = layer(x).unflatten(0, (len(ROWS), copies))
            keep(kept)
            fewer = layer(x.unflatten(0, (len(ROWS), copies))[kept].flatten(0, 1))
            for i, (rows, name) in enumerate(zip(x.split(copies), ROWS, strict=True)):
                expected = layer.base_layer(rows)
                if name in layer.adapters:
                    expected = expected + layer.adapters[name].branch(rows, expected, layer.base)
                torch.testing.assert_close(whole[i], expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(fewer, whole[kept].flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_the_names_of_all_rows_are_restored_after_the_block(crowd: nn.Module, batch: dict) -> None:
    names = ["lora", "dora", None]
    with adapter_rows(crowd, names, frozen=True):
        before = logits(crowd, batch)
        with shrinking_batch(crowd) as keep:
            keep([2, 0])
            fewer = logits(crowd, {key: value[[2, 0]] for key, value in batch.items()})
            with pytest.raises(ValueError, match="2 adapter names for a batch of 3"):
                logits(crowd, batch)
        assert torch.equal(logits(crowd, batch), before)
    torch.testing.assert_close(fewer, before[[2, 0]], rtol=1e-4, atol=1e-4)


def test_frozen_rows_give_the_same_gradients_as_others(crowd: nn.Module) -> None:
    """With gradients the loop is taken, and its gradients are those of rows that are not frozen."""
    found = []
    for frozen in (False, True):
        set_adapter(crowd, ["lora", "pissa"])
        crowd.zero_grad()
        batch = {"input_ids": sources(), "labels": sources()}
        with adapter_rows(crowd, ["lora", "pissa"] * 3, frozen=frozen):
            crowd(**batch).loss.backward()
        found.append([p.grad.clone() for p in crowd.parameters() if p.grad is not None])
    assert found[0] and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_saving_an_adapter_that_is_active_with_a_weight_says_that_the_weight_is_not_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = alone("lora")
    save_adapter(model, tmp_path, "lora")
    assert "weight" not in caplog.text
    set_adapter(model, {"lora": 0.5})
    save_adapter(model, tmp_path, "lora")
    assert "adapter 'lora' is active with the weight 0.5, which is not saved: after loading" in caplog.text
    combine_adapters(model, {"lora": 0.5}, "scaled", combination="cat")
    set_adapter(model, "scaled")
    caplog.clear()
    save_adapter(model, tmp_path, "scaled")
    assert "weight" not in caplog.text
