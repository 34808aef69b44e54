"""DoRA: magnitudes train, zero rows do not break, and the norm is computed when it changes and no oftener."""

import pytest
import torch
from support.models import make_t5
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_hf import LoraConfig, inject_adapters, merge_adapters, unmerge_adapters
from lora_hf.adapters.methods import dora
from lora_hf.adapters.model_state import lora_layers


def layer(rows: torch.Tensor | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    if rows is not None:
        model[0].weight.data[rows] = 0
    return inject_adapters(model, LoraConfig(r=2, target_modules=["0"], use_dora=True))


def test_the_magnitudes_start_at_the_rows_norms_and_train() -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=2, use_dora=True))
    (first, *_) = lora_layers(model).values()
    magnitude = first.adapters["default"].lora_magnitude_vector
    torch.testing.assert_close(magnitude.detach(), first.weight.norm(dim=1))
    before = magnitude.detach().clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.randint(2, 90, (4, 6))
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert ((magnitude.detach() - before).abs() > 1e-3).float().mean() > 0.9


def test_a_zero_row_gives_no_nan_and_learns() -> None:
    """‖V‖ = 0 has no direction: PEFT divides by it (peft#2049)."""
    model = layer(torch.tensor([1, 3]))
    x, target = torch.randn(16, 6), torch.randn(16, 4)
    assert torch.equal(model(x), model[0].base_layer(x))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    first = None
    for _ in range(60):
        loss = ((model(x) - target)[:, [1, 3]] ** 2).mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
    assert loss.item() < 0.9 * first


def test_the_gradient_of_the_magnitude_is_the_direction_s_output() -> None:
    model = layer()
    adapter = model[0].adapters["default"]
    with torch.no_grad():
        adapter.lora_B.normal_()
    x = torch.randn(5, 6)
    model(x).sum().backward()
    V = model[0].weight + adapter.scaling * (adapter.lora_B @ adapter.lora_A).detach()
    expected = (x @ V.T / V.norm(dim=1)).sum(0)
    torch.testing.assert_close(adapter.lora_magnitude_vector.grad, expected)


def test_in_generation_the_norm_is_computed_again_only_after_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, calls = layer().eval(), torch.randn(3, 6), []
    norms = dora.row_norms
    monkeypatch.setattr(dora, "row_norms", lambda weight: calls.append(1) or norms(weight))
    adapter = model[0].adapters["default"]

    def computes(change) -> bool:
        change()
        calls.clear()
        model(x), model(x)
        output = model(x)
        times = len(calls)
        W = model[0].base_layer.weight
        torch.testing.assert_close(output, x @ (W + adapter.delta(W)).T + model[0].bias)
        return times == 1

    def nothing() -> None: ...

    @torch.no_grad()
    def step() -> None:
        adapter.lora_A.add_(0.1)
        adapter.lora_B.add_(0.1)

    @torch.no_grad()
    def new_base() -> None:
        model[0].base_layer.weight.mul_(2)

    assert computes(nothing)
    calls.clear()
    model(x)
    assert not calls
    assert computes(step) and computes(new_base)
    merge_adapters(model)
    unmerge_adapters(model)
    assert computes(nothing)


def test_the_norm_follows_an_update_that_changes_no_version_counter() -> None:
    """Optimizers of bitsandbytes, and averages of weights, write below what torch counts."""
    model, x = layer(), torch.randn(3, 6)
    adapter, base = model[0].adapters["default"], model[0].base_layer

    def expected() -> Tensor:
        return x @ (base.weight + adapter.delta(base.weight)).T + model[0].bias

    for mode in (True, False):
        model.train(mode)(x)
        adapter.lora_B.data.add_(0.1)
        torch.testing.assert_close(model.train(mode)(x), expected())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model, x = layer().train(), torch.randn(3, 6)
    adapter = model[0].adapters["default"]
    grads = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        grads.append(torch.autograd.grad(run(x).square().sum(), list(adapter.parameters())))
    for ours, plain in zip(*grads, strict=True):
        assert torch.equal(ours, plain)
