"""A trainer on rows of random tokens, and one with PEFT that takes them in the same order."""

import random
from pathlib import Path
from typing import Any

import torch
from support.models import TOKENS, make_shallow_t5, make_t5
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.trainer_callback import TrainerCallback

from lora_hf import LoraConfig, LoraTrainer, inject_adapters

CONFIG = LoraConfig(r=4, lora_alpha=10)


class Rows(torch.utils.data.Dataset):
    """Rows of random token ids with different lengths."""

    def __init__(self, n: int = 48, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.rows = [
            {
                "input_ids": (ids := [draw.randrange(3, TOKENS) for _ in range(draw.randrange(3, 24))]),
                "attention_mask": [1] * len(ids),
                "labels": ids[: draw.randrange(2, 12)] + [1],
            }
            for _ in range(n)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return self.rows[i]


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(TOKENS)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")),
        pad_token="w0",
        eos_token="w1",
        unk_token="w2",
    )


def arguments(folder: Path, **fields: Any) -> Seq2SeqTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 10,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Seq2SeqTrainingArguments(output_dir=str(folder), **(defaults | fields))


def make_trainer(
    model: nn.Module, args: Seq2SeqTrainingArguments, kind: type = LoraTrainer, **more: Any
) -> Any:
    collator = DataCollatorForSeq2Seq(tokenizer())
    more = {"train_dataset": Rows()} | more
    return kind(model, args, data_collator=collator, processing_class=tokenizer(), **more)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def adapted(seed: int = 5, make: Any = make_t5, targets: tuple[str, ...] = ("q", "v")) -> nn.Module:
    torch.manual_seed(seed)
    return inject_adapters(make(), LoraConfig(r=4, lora_alpha=10, target_modules=targets))


def shallow() -> nn.Module:
    """Return a model of one block in each stack: its steps take two thirds of the time."""
    return adapted(make=make_shallow_t5)


def dropping() -> nn.Module:
    """Return a model with dropout, whose steps draw random numbers."""
    model = make_shallow_t5()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    return adapted(make=lambda: model)


class PeftInOrder(Seq2SeqTrainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class OursInOrder(LoraTrainer):
    _get_train_sampler = PeftInOrder._get_train_sampler


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


def all_losses(trainer: Any) -> torch.Tensor:
    """Return the losses of the steps, then those of the evaluations."""
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return torch.tensor([*losses(trainer), *evaluated])
