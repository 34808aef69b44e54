"""LoRA-FA: A stays where it began, through training, saving, PEFT, resuming, merging and mixed batches."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.models import logits, make_t5
from torch import Tensor, nn

from lora_hf import (
    LoraConfig,
    UserError,
    adapter_rows,
    inject_adapters,
    load_adapter,
    merge_and_unload,
    save_adapter,
    set_adapter,
    spectra,
)
from lora_hf.adapters.load import put_adapter_state
from lora_hf.adapters.model_state import lora_layers
from lora_hf.adapters.save import adapter_state

CONFIG = LoraConfig(r=3, lora_alpha=5, use_lora_fa=True)


def trained(batch: dict[str, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    model = inject_adapters(make_t5(), CONFIG).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def test_only_b_trains_also_after_another_adapter_was_active(batch: dict) -> None:
    torch.manual_seed(0)
    initial = adapter_state(inject_adapters(make_t5(), CONFIG))
    model = trained(batch)
    inject_adapters(model, LoraConfig(r=2), "other")
    set_adapter(model, "default")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all(name.endswith("adapters.default.lora_B") for name in names)
    for name, tensor in adapter_state(model).items():
        assert torch.equal(tensor, initial[name]) == ("lora_A" in name)


def test_its_file_is_plain_lora_to_peft_and_to_us(tmp_path: Path, batch: dict) -> None:
    model = trained(batch)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make_t5(), tmp_path, is_trainable=True)
    torch.testing.assert_close(logits(theirs.eval(), batch), logits(model, batch), rtol=0, atol=1e-5)
    assert {name.split(".")[-2] for name in load_file(tmp_path / "adapter_model.safetensors")} == {
        "lora_A",
        "lora_B",
    }
    again = load_adapter(make_t5(), tmp_path)
    assert torch.equal(logits(again, batch), logits(model, batch))
    for each in (model, theirs):
        each.zero_grad()
        each(**batch).loss.backward()
    reference = {n: p.grad for n, p in theirs.named_parameters() if "lora_B" in n}
    ours = [p.grad for p in model.parameters() if p.requires_grad]
    for mine, gradient in zip(ours, reference.values(), strict=True):
        torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_restores_the_frozen_a(batch: dict) -> None:
    model = trained(batch)
    torch.manual_seed(5)
    other = inject_adapters(make_t5(), CONFIG)
    put_adapter_state(other, adapter_state(model))
    assert torch.equal(logits(other, batch), logits(model, batch))
    assert not any(layer.adapters["default"].lora_A.requires_grad for layer in lora_layers(other).values())


def test_it_merges_mixes_and_has_a_spectrum(batch: dict) -> None:
    model = trained(batch)
    alone = logits(model, batch)
    assert all(len(values) == 3 for values in spectra(model).values())
    inject_adapters(model, LoraConfig(r=2), "other")
    names = ["default", "other", None] * (len(batch["input_ids"]) // 3)
    with adapter_rows(model, names, frozen=True):
        mixed = logits(model, batch)
    torch.testing.assert_close(mixed[::3], alone[::3], rtol=1e-4, atol=1e-4)
    set_adapter(model, "default")
    torch.testing.assert_close(logits(merge_and_unload(model), batch), alone, rtol=1e-4, atol=1e-4)


def test_an_a_of_zeros_is_not_frozen() -> None:
    with pytest.raises(UserError, match="use_lora_fa=True freezes A, which is zero .*layer shared"):
        inject_adapters(make_t5(), LoraConfig(target_modules=["shared"], use_lora_fa=True))
