"""Compiled and wrapped models: names are those of the unwrapped model, in files, targets and checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import logits, make_shallow_t5, make_t5, randomize
from support.selection import slow_except
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lora_hf import (
    LoraConfig,
    UserError,
    delete_adapter,
    disable_adapters,
    inject_adapters,
    load_adapter,
    merge_and_unload,
    save_adapter,
    set_adapter,
)
from lora_hf.adapters.load import put_adapter_state
from lora_hf.adapters.model_state import lora_layers
from lora_hf.adapters.save import adapter_state
from lora_hf.baselines import add_bottlenecks, load_extras, save_extras

CONFIG = LoraConfig(r=4, lora_alpha=10, modules_to_save=("lm_head",), rank_pattern={"v": 2})
PLAIN = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def compiled_parts(model: Any) -> Any:
    for i in range(2):
        model.encoder.block[i] = compiled(model.encoder.block[i])
    attention = model.decoder.block[1].layer[1].EncDecAttention
    attention.q = compiled(attention.q)  # a target itself
    model.decoder.block[0] = checkpoint_wrapper(model.decoder.block[0])
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "compiled parts": compiled_parts,
    "compiled stack": lambda model: setattr(model, "encoder", compiled(model.encoder)) or model,
    "DataParallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(compiled(model)),
}


@pytest.mark.parametrize("wrapper", slow_except(["DataParallel"], WRAPPERS))
def test_an_adapter_of_a_wrapped_model_is_written_as_of_the_plain_one(
    wrapper: str, tmp_path: Path, batch: dict
) -> None:
    make = make_shallow_t5 if wrapper == "compiled" else make_t5  # tracing takes seconds
    model = inject_adapters(make(), CONFIG)
    randomize(model)
    save_adapter(model, tmp_path / "plain")
    wrapped = WRAPPERS[wrapper](make())
    assert inject_adapters(wrapped, CONFIG) is wrapped
    randomize(wrapped)
    put_adapter_state(wrapped, adapter_state(model))
    torch.testing.assert_close(logits(wrapped, batch), logits(model, batch), rtol=0, atol=1e-5)
    save_adapter(wrapped, tmp_path / "wrapped")
    for name in ("adapter_config.json", "adapter_model.safetensors", "lora_hf.json"):
        assert (tmp_path / "wrapped" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("wrapper", slow_except(["DataParallel"], WRAPPERS))
def test_a_wrapped_model_takes_an_adapter_and_everything_works_through_it(
    wrapper: str, tmp_path: Path, batch: dict
) -> None:
    model = inject_adapters(make_t5(), CONFIG)
    randomize(model)
    save_adapter(model, tmp_path)
    expected, base = logits(model, batch), logits(make_t5(), batch)
    wrapped = WRAPPERS[wrapper](make_t5())
    torch.testing.assert_close(logits(wrapped, batch), base, rtol=0, atol=1e-5)  # compiled before the change
    load_adapter(wrapped, tmp_path)
    torch.testing.assert_close(logits(wrapped, batch), expected, rtol=0, atol=1e-5)
    inject_adapters(wrapped, LoraConfig(r=2), "other")
    torch.testing.assert_close(logits(wrapped, batch), base, rtol=0, atol=1e-5)
    set_adapter(wrapped, "default")
    with disable_adapters(wrapped):
        torch.testing.assert_close(logits(wrapped, batch), base, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(wrapped, batch), expected, rtol=0, atol=1e-5)
    delete_adapter(wrapped, "other")
    torch.testing.assert_close(logits(merge_and_unload(wrapped), batch), expected, rtol=0, atol=1e-5)
    assert not lora_layers(wrapped)


@pytest.mark.parametrize("wrap", [WRAPPERS["compiled"], nn.DataParallel], ids=["compiled", "DataParallel"])
def test_a_model_wrapped_afterwards_is_saved_with_plain_names_too(wrap: Any, tmp_path: Path) -> None:
    save_adapter(wrap(inject_adapters(make_t5(), CONFIG)), tmp_path)
    assert PLAIN in load_file(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.model.", "_orig_mod.base_model.model."),
        ("base_model.model.", "base_model.model.module."),
        ("base_model.model.", "module.base_model.model._orig_mod."),
        ("block.0.", "block.0._orig_mod."),
        ("block.0.", "block.0._checkpoint_wrapped_module."),
        (".weight", ".default.weight"),  # of a state dict, with the adapter's name
    ],
)
def test_files_with_a_wrapper_s_names_are_read(old: str, new: str, tmp_path: Path, batch: dict) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=4, lora_alpha=10))
    randomize(model)
    save_adapter(model, tmp_path)
    (tmp_path / "lora_hf.json").unlink()
    file = tmp_path / "adapter_model.safetensors"
    save_file({key.replace(old, new): t for key, t in load_file(file).items()}, file)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    raw["target_modules"] = [
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").replace("block.0.", new)
        if new.startswith("block.0.")
        else key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        for key in adapter_state(model)
        if key.endswith(".lora_A.weight")
    ]
    (tmp_path / "adapter_config.json").write_text(json.dumps(raw))
    again = load_adapter(make_t5(), tmp_path)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_file_with_the_tensors_of_two_adapters_is_refused(tmp_path: Path) -> None:
    save_adapter(inject_adapters(make_t5(), CONFIG), tmp_path)
    (tmp_path / "lora_hf.json").unlink()
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[PLAIN.replace(".weight", ".german.weight")] = torch.zeros(4, 32)
    save_file(tensors, file)
    with pytest.raises(UserError, match="two tensors for .*lora_A.weight.*several adapters"):
        load_adapter(make_t5(), tmp_path)


def test_peft_reads_what_was_saved_of_a_compiled_model(tmp_path: Path, batch: dict) -> None:
    model = compiled(inject_adapters(make_t5(), LoraConfig(r=4, lora_alpha=10)))
    randomize(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make_t5(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs, batch), logits(model._orig_mod, batch), rtol=0, atol=1e-5)


def test_adapters_are_not_added_to_a_model_whose_gradients_are_synchronized_already() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(make_t5())
        with pytest.raises(UserError, match="DistributedDataParallel.*add adapters before"):
            inject_adapters(wrapped, CONFIG)
        assert not lora_layers(wrapped)
        wrapped = nn.parallel.DistributedDataParallel(inject_adapters(make_t5(), CONFIG))
        assert PLAIN in adapter_state(wrapped)
    finally:
        torch.distributed.destroy_process_group()


def test_a_baseline_of_a_compiled_model_has_plain_names(tmp_path: Path, batch: dict) -> None:
    model = compiled(make_t5())
    add_bottlenecks(model, 4, "gelu")
    randomize(model)
    save_extras(model, tmp_path)
    assert not [key for key in load_file(tmp_path / "adapter_model.safetensors") if "_orig_mod" in key]
    again = load_extras(make_t5(), tmp_path, add_bottlenecks)
    torch.testing.assert_close(logits(again, batch), logits(model._orig_mod, batch), rtol=0, atol=1e-5)
