"""Models whose weights accelerate keeps elsewhere: every change of theirs is refused before it is made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from support.models import logits, make_t5, randomize
from torch import nn
from transformers import T5ForConditionalGeneration

from lora_hf import (
    LoraConfig,
    UserError,
    disable_adapters,
    inject_adapters,
    load_adapter,
    merge_adapters,
    merge_and_unload,
    replicate_layers,
    save_adapter,
)

ON_DISK = {
    **dict.fromkeys(("shared", "lm_head", "encoder", "decoder.embed_tokens", "decoder.block.0"), "cpu"),
    **{"decoder.block.1": "disk", "decoder.final_layer_norm": "cpu", "decoder.dropout": "cpu"},
}


def by_device_map(folder: Path) -> nn.Module:
    make_t5().save_pretrained(folder / "base")
    return T5ForConditionalGeneration.from_pretrained(
        folder / "base", device_map=ON_DISK, offload_folder=str(folder / "offloaded")
    ).eval()


def on_the_cpu(model: nn.Module, folder: Path) -> nn.Module:
    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def with_buffers(model: nn.Module, folder: Path) -> nn.Module:
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    return model


def on_the_disk(model: nn.Module, folder: Path) -> nn.Module:
    disk_offload(model, str(folder / "offloaded"), execution_device=torch.device("cpu"))
    return model


BASES: dict[str, Callable[[Path], nn.Module]] = {
    "device_map": by_device_map,
    "cpu_offload": lambda folder: on_the_cpu(make_t5(), folder),
    "disk_offload": lambda folder: on_the_disk(make_t5(), folder),
}


@pytest.mark.parametrize("offloaded", BASES)
def test_a_base_that_is_offloaded_is_refused_and_left_as_it_was(
    offloaded: str, tmp_path: Path, batch: dict
) -> None:
    """Injecting alone moved the logits by more than their size: accelerate fetches by the old names."""
    save_adapter(inject_adapters(make_t5(), LoraConfig(r=2)), tmp_path / "adapter")
    base = BASES[offloaded](tmp_path)
    before = logits(base, batch)
    assert torch.equal(before, logits(make_t5(), batch))
    changes: list[Callable[[], Any]] = [
        lambda: inject_adapters(base, LoraConfig(r=2)),
        lambda: load_adapter(base, tmp_path / "adapter"),
        lambda: replicate_layers(base, {"encoder": [[0, 2], [0, 2]]}),
    ]
    for change in changes:
        with pytest.raises(UserError, match="keeps weights of .* on the CPU or the disk.*one device"):
            change()
    assert torch.equal(logits(base, batch), before)


@pytest.mark.parametrize("offload", [on_the_cpu, with_buffers, on_the_disk])
def test_adapters_that_are_offloaded_are_neither_used_nor_merged_nor_saved(
    offload: Callable[[nn.Module, Path], nn.Module], tmp_path: Path, batch: dict
) -> None:
    """accelerate fetches what a module's forward needs, and adapters have none: the logits became zeros."""
    model = inject_adapters(make_t5(), LoraConfig(r=2)).eval()
    randomize(model)
    offload(model, tmp_path)
    for change in (merge_adapters, merge_and_unload, lambda model: save_adapter(model, tmp_path / "adapter")):
        with pytest.raises(UserError, match="keeps weights of .* on the CPU or the disk"):
            change(model)
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(RuntimeError, match="accelerate has offloaded the adapters' weights"):
        logits(model, batch)
    with disable_adapters(model):
        assert torch.equal(logits(model, batch), logits(make_t5(), batch))
