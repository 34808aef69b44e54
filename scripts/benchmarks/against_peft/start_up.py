"""The worker that loads a base from disk and injects adapters, once per turn."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from lora_hf import LoraConfig, inject_adapters
from lora_hf.config import ModelConfig
from lora_hf.models.load import load_model
from scripts.benchmarks.against_peft.turns import send


def start_up(side: str, options: argparse.Namespace) -> None:
    """Load the base in `options.folder` once per turn and report the seconds."""
    send({"ready": True})
    for _ in range(options.steps):
        sys.stdin.readline()
        began = time.perf_counter()
        LOADERS[side](options.folder)
        send({"seconds": time.perf_counter() - began})


def ours(folder: str, **fields: Any) -> Any:
    model = load_model(ModelConfig(model_name_or_path=folder), torch.device("cpu"))
    return inject_adapters(model, LoraConfig(r=32, lora_alpha=32, **fields))


def plain(folder: str) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(folder)


def peer(folder: str) -> Any:
    import peft

    config = peft.LoraConfig(r=32, lora_alpha=32, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    return peft.get_peft_model(plain(folder), config)


LOADERS: dict[str, Callable[[str], Any]] = {
    "ours": ours,
    "pissa": lambda folder: ours(folder, init_lora_weights="pissa"),
    "plain": plain,
    "peer": peer,
}
