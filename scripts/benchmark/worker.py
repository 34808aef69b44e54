"""One side of the benchmark, in a process of its own: trains a step each time it is told to.

It prints a line of JSON a step: seconds, loss, MiB beyond those before the first. The peer is PEFT with
Seq2SeqTrainer, by its defaults or with batches of like length.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.utils.logging import set_verbosity_error

from lora_hf.config import DataConfig
from lora_hf.data.load import load_split
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.shapes import random_flan_t5

ORDERS = {"ours": "group_by_length", "peer": "random", "peer_best": "group_by_length"}
"""By side, the order of the dialogues; losses are compared on the same batches, without dropout."""
MARK = "bench "
RANK = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}


class InTurn(TrainerCallback):
    """Waits for a line before each step, and prints what the step took after it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        say({"ready": True})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sys.stdin.readline()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.start

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            mib = memory("VmHWM") - self.before
            say({"seconds": self.seconds, "loss": float(logs["loss"]), "mib": mib})


def say(record: dict[str, Any]) -> None:
    """A line for the process that started this one, told from the Trainer's own by its first word."""
    print(f"{MARK}{json.dumps(record)}", flush=True)


def memory(field: str) -> float:
    """MiB, of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def without_dropout(model: nn.Module) -> None:
    """So that both sides' losses can be compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # T5's attention


def adapted(side: str, shape: str, dropout: bool) -> tuple[Any, Any]:
    """The model with its adapters, and the trainer's class."""
    model, rank = random_flan_t5(shape).to(torch.bfloat16), dict(RANK)
    if not dropout:
        without_dropout(model)
        rank["lora_dropout"] = 0.0
    torch.manual_seed(1)
    if side == "ours":
        from lora_hf import LoraConfig, LoraTrainer, inject_adapters

        return inject_adapters(model, LoraConfig(**rank)), LoraTrainer
    import peft

    config = peft.LoraConfig(**rank, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    return peft.get_peft_model(model, config), Seq2SeqTrainer


def train(side: str, options: argparse.Namespace) -> None:
    """Steps in turn with the other side, `options.steps` of them."""
    set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    data = DataConfig(dataset_name=options.data, max_train_samples=options.steps * options.batch)
    rows = TokenizedDialogues(load_split(data, "train"), tokenizer, data, "train")
    model, kind = adapted(side, options.shape, options.dropout)
    with TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            per_device_train_batch_size=options.batch,
            num_train_epochs=options.epochs,
            learning_rate=1e-3,
            bf16=True,
            use_cpu=True,
            logging_steps=1,
            train_sampling_strategy=ORDERS[side] if options.dropout else "sequential",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        more = {"fast_paths": True} if side == "ours" else {}
        collator = DataCollatorForSeq2Seq(tokenizer)
        trainer = kind(model, arguments, collator, rows, callbacks=[InTurn()], **more)
        trainer.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=ORDERS)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=12, help="an epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--no-dropout", dest="dropout", action="store_false")
    given = parser.parse_args()
    train(given.side, given)
