"""A side that trains: one step of the Trainer when it is its turn."""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from lora_hf import LoraTrainer
from lora_hf.data.tokenize import TokenizedDialogues
from scripts.benchmark.models import adapted, dialogues, memory
from scripts.benchmark.turns import say


class InTurn(TrainerCallback):
    """Waits for a line before each step, and says what the step took after it."""

    def __init__(self, device: str) -> None:
        self.device = device

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = memory(self.device)
        if self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        say({"ready": True})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sys.stdin.readline()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            mib = memory(self.device, "VmHWM") - self.before
            say({"seconds": self.seconds, "loss": float(logs["loss"]), "mib": mib})


def train(side: str, options: argparse.Namespace) -> None:
    """Steps in turn with the other sides; the peer by its defaults does not group dialogues by length."""
    tokenizer, data, examples = dialogues(options, "train", options.steps * options.batch)
    rows = TokenizedDialogues(examples, tokenizer, data, "train")
    model = adapted(side, options)
    grouped = "random" if side == "peer" else "group_by_length"
    with TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            per_device_train_batch_size=options.batch,
            num_train_epochs=options.epochs,
            learning_rate=1e-3,
            bf16=options.dtype == "bfloat16",
            use_cpu=options.device == "cpu",
            logging_steps=1,
            train_sampling_strategy=grouped if options.dropout else "sequential",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=options.device == "cuda",
        )
        kind = Seq2SeqTrainer if side.startswith("peer") else LoraTrainer
        collator = DataCollatorForSeq2Seq(tokenizer)
        kind(model, arguments, collator, rows, callbacks=[InTurn(options.device)]).train()
