"""The worker that trains: one step of the Trainer per turn."""

import argparse
import gc
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from lora_hf import LoraTrainer
from lora_hf.data.tokenize import TokenizedDialogues
from scripts.benchmarks.against_peft.models import adapted, dialogues, memory
from scripts.benchmarks.against_peft.turns import send

SUMMARY = 40
"""Tokens of a summary if all dialogues have one length (DialogSum: median 27, 95th percentile 52)."""


class InTurn(TrainerCallback):
    """Wait for a line of standard input before each step, and report time, loss and memory after it.

    With `--count` the first epoch, which is not timed, counts the floating-point operations.
    """

    def __init__(self, options: argparse.Namespace, tokens: int, bare: float) -> None:
        self.device, self.counted, self.tokens, self.bare = options.device, options.count, tokens, bare
        self.compiles = options.compile

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gc.collect()
        self.before = memory(self.device)
        if self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        else:
            torch.cuda.reset_peak_memory_stats()
        send({"ready": True})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sys.stdin.readline()
        self.counter: Any = (
            FlopCounterMode(display=False) if self.counted and state.epoch < 1 else nullcontext()
        )
        self.counter.__enter__()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start
        self.counter.__exit__(None, None, None)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.compiles and self.counted and round(state.epoch) == 1:
            torch.compiler.reset()  # code met while counting stays uncompiled otherwise

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            peak, counted = memory(self.device, "VmHWM"), isinstance(self.counter, FlopCounterMode)
            send(
                {
                    "seconds": self.seconds,
                    "loss": float(logs["loss"]),
                    "mib": peak - self.before,
                    "mib_with_weights": peak - self.bare,
                    "flop": self.counter.get_total_flops() if counted else None,
                    "epoch_tokens": self.tokens,
                    "graphs": compiled_graphs() if self.compiles else 0,
                }
            )


def compiled_graphs() -> int:
    """Return the number of graphs that torch has compiled in this process."""
    from torch._dynamo.utils import counters  # imported late: it takes memory, which is measured

    return int(counters["stats"]["unique_graphs"])


def train(side: str, options: argparse.Namespace) -> None:
    """Train in turn with the other workers; PEFT with its defaults does not group dialogues by length."""
    bare = memory(options.device)
    tokenizer, rows = rows_of(options)
    model = adapted(side, options)
    grouped = "random" if side == "peer" else "group_by_length"
    with TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            per_device_train_batch_size=options.batch,
            num_train_epochs=options.epochs,
            learning_rate=1e-3,
            bf16=options.dtype == "bfloat16",
            torch_compile=options.compile and not side.startswith("peer"),
            tf32=False if options.device == "cuda" else None,  # torch_compile would turn it on
            use_cpu=options.device == "cpu",
            logging_steps=1,
            train_sampling_strategy=grouped if options.dropout else "sequential",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=options.device == "cuda",
        )
        kind = Seq2SeqTrainer if side.startswith("peer") else LoraTrainer
        tokens = sum(len(rows[i]["input_ids"]) + len(rows[i]["labels"]) for i in range(len(rows)))
        turns = InTurn(options, tokens, bare)
        kind(model, arguments, DataCollatorForSeq2Seq(tokenizer), rows, callbacks=[turns]).train()


def rows_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the tokenizer, and the rows of the dialogues or rows of `options.length` random tokens."""
    n = options.steps * options.batch
    if not options.length:
        tokenizer, data, examples = dialogues(options, "train", n)
        return tokenizer, TokenizedDialogues(examples, tokenizer, data, "train")
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    draw = torch.Generator().manual_seed(0)
    lengths = {"input_ids": options.length, "labels": SUMMARY}
    drawn = {k: torch.randint(2, len(tokenizer), (n, m), generator=draw).tolist() for k, m in lengths.items()}
    mask = [1] * options.length
    return tokenizer, [
        {"input_ids": i, "attention_mask": mask, "labels": j}
        for i, j in zip(drawn["input_ids"], drawn["labels"], strict=True)
    ]
