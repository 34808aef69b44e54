"""Measure the time of a training step on a model of the same size with random weights."""

import time
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    PrinterCallback,
    TrainerCallback,
    default_data_collator,
)

from lora_hf.config import RunConfig
from lora_hf.data.collate import collator
from lora_hf.models.head import guard_ties, untie_head
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.planning.fake_model import settings_of, with_plain_init
from lora_hf.planning.plan import Plan, local_rows, trained_dtype
from lora_hf.system import pick_device, resolve_dtype
from lora_hf.training.arguments import training_arguments
from lora_hf.training.registry import ADDED_WEIGHTS
from lora_hf.training.trainer import LoraTrainer

TIMED = 3
LATER = ("eval", "save", "load_best", "report", "metric")
"""Prefixes of the fields of `training` that concern evaluations, checkpoints and reports."""


class Clock(TrainerCallback):
    """Records the duration of each step in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def step_seconds(config: RunConfig, record: Plan) -> float:
    """Return the median duration of `TIMED` steps in seconds, after one step that is not counted.

    The batches are those of the training data; without it on this machine, the longest ones admitted.
    """
    device = pick_device()
    model = _random(config, trained_dtype(config, device), device)
    if config.method in ADDED_WEIGHTS:
        ADDED_WEIGHTS[config.method].add(with_plain_init(config), model)
    clock, rows = Clock(), local_rows(config)
    collate = collator(load_tokenizer(config.model), model) if rows else default_data_collator
    with TemporaryDirectory() as folder:
        asked = {k: v for k, v in config.training.items() if not k.startswith(LATER)}
        few = {"max_steps": TIMED + 1, "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
        timed = config.model_copy(update={"training": asked | few})
        args = training_arguments(timed, folder, 1, resolve_dtype(config.model.dtype, device))
        trainer = LoraTrainer(
            model,
            args,
            data_collator=collate,
            train_dataset=rows or _longest(config, record),
            callbacks=[clock],
            fast_paths=config.fast_paths,
        )
        trainer.remove_callback(PrinterCallback)  # standard output may be the plan as JSON
        trainer.train()
    return median(clock.seconds[1:])


def _random(config: RunConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the base with random weights in the run's storage format, which only loading can quantize."""
    model: Any = AutoModelForSeq2SeqLM.from_config(settings_of(config.model), dtype=dtype)
    guard_ties(model)
    if not config.model.is_quantized:
        return (untie_head(model) if config.model.untie_head else model).to(device)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        return load_model(
            config.model.model_copy(update={"model_name_or_path": folder, "revision": None}), device
        )


def _longest(config: RunConfig, record: Plan) -> Any:
    """Return rows with the lengths of the planned batch."""
    batch = record["batch"]
    n = batch["dialogues"] * (TIMED + 1) * int(config.training.get("gradient_accumulation_steps", 1))
    source, target = ([2] * batch[key] for key in ("source", "target"))
    return [{"input_ids": source, "attention_mask": [1] * len(source), "labels": target}] * n
