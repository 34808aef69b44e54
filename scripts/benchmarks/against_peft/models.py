"""Parts that all workers share: the base model, the initialization of the adapters, and the dialogues."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from lora_hf.config import DataConfig, ModelConfig
from lora_hf.data.examples import Example
from lora_hf.data.splits import load_split
from lora_hf.models.flan_t5 import random_flan_t5
from lora_hf.models.load import load_model

DROPOUT = 0.05
TINY = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2}
"""A shape for testing the benchmark itself; its times mean nothing."""


def base_model(options: argparse.Namespace, quantized: bool = False) -> Any:
    """Return a FLAN-T5 with random weights on the device; only its speed and memory can be measured."""
    model = random_flan_t5(TINY if options.shape == "tiny" else options.shape).to(
        getattr(torch, options.dtype)
    )
    if not quantized:
        return model.to(options.device)
    with TemporaryDirectory() as folder:  # quantized while it is read, as a user's model is
        model.save_pretrained(folder)
        del model
        config = ModelConfig(model_name_or_path=folder, load_in_4bit=True)
        return load_model(config, torch.device(options.device))


def adapted(side: str, options: argparse.Namespace) -> Any:
    """Return the model with LoRA or DoRA on q and v by the side's library; A and B are the same in all."""
    model = base_model(options, quantized=side == "ours_4bit")
    if not options.dropout:
        without_dropout(model)
    rank: dict[str, Any] = {
        "r": options.r,
        "lora_alpha": 2 * options.r,
        "lora_dropout": DROPOUT if options.dropout else 0.0,
    }
    if side.startswith("peer"):
        import peft

        config = peft.LoraConfig(**rank, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
        model = peft.get_peft_model(model, config)
        for number in range(1, options.adapters):
            model.add_adapter(f"task{number}", config)
    else:
        from lora_hf import LoraConfig, inject_adapters, set_adapter

        own = LoraConfig(**rank, use_dora=side == "dora")
        for name in ["default", *(f"task{number}" for number in range(1, options.adapters))]:
            model = inject_adapters(model, own, name)
        set_adapter(model, "default")
    initialize_adapters(model, options.job == "evaluate")
    return model


def initialize_adapters(model: nn.Module, trained: bool) -> None:
    """Draw A from a fixed seed in the order of the layers, and B too if `trained`; else B stays zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or (trained and "lora_B" in name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def without_dropout(model: nn.Module) -> None:
    """Turn dropout off, so that the losses of two libraries can be compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # T5's attention


def dialogues(options: argparse.Namespace, split: str, n: int) -> tuple[Any, DataConfig, list[Example]]:
    """Return the tokenizer, the config of the data, and the first n dialogues of a split."""
    data = DataConfig(dataset_name=options.data, **{f"max_{split}_samples": n})
    return AutoTokenizer.from_pretrained(options.tokenizer), data, load_split(data, split)


def memory(device: str, field: str = "VmRSS") -> float:
    """Return MiB of memory: the allocator's peak on a GPU; else resident, now or at its peak (VmHWM)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20 if field == "VmHWM" else 0.0
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024
