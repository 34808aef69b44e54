"""The worker that generates summaries: those of a few dialogues in each turn.

A model with random weights does not stop by itself. Each summary ends at the number of tokens of a reference
whose dialogue has the same length.
"""

import argparse
import sys
import time
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from lora_hf.data.tokenize import encode_sources
from lora_hf.evaluation.generate import generate_summaries
from scripts.benchmarks.against_peft.models import adapted, dialogues
from scripts.benchmarks.against_peft.turns import send

Lengths = dict[int, int]


def evaluate(side: str, options: argparse.Namespace) -> None:
    """Summarize `options.batch` dialogues per turn; PEFT's model by `Seq2SeqTrainer.predict` unchanged."""
    n = options.steps * options.batch
    tokenizer, data, examples = dialogues(options, "test", n)
    sources = encode_sources([example.dialogue for example in examples], tokenizer, data).ids
    labels = [tokenizer(example.references[0]).input_ids for example in examples]
    model = adapted(side, options).eval()
    end_at(model, {len(ids): len(label) for ids, label in zip(sources, labels, strict=True)})
    send({"ready": True})
    for start in range(0, n, options.batch):
        rows = slice(start, start + options.batch)
        sys.stdin.readline()
        began = time.perf_counter()
        if side == "ours":
            texts = generate_summaries(model, tokenizer, sources[rows], 128, num_beams=options.beams)
        else:
            texts = predict(model, tokenizer, sources[rows], labels[rows], options)
        send({"seconds": time.perf_counter() - began, "texts": texts})


def predict(
    model: Any, tokenizer: Any, sources: list[list[int]], labels: list[list[int]], options: argparse.Namespace
) -> list[str]:
    """Return the summaries that `Seq2SeqTrainer.predict` generates."""
    with TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            predict_with_generate=True,
            use_cpu=options.device == "cpu",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=options.device == "cuda",
        )
        trainer = Seq2SeqTrainer(model, arguments, DataCollatorForSeq2Seq(tokenizer))
        rows: Any = [{"input_ids": i, "labels": j} for i, j in zip(sources, labels, strict=True)]
        output = trainer.predict(rows, max_new_tokens=128, num_beams=options.beams)
    ids = [[token for token in row if token >= 0] for row in output.predictions.tolist()]
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def end_at(model: nn.Module, lengths: Lengths) -> None:
    """Force each row, and all its beams, to end after `lengths[tokens of its source]` tokens."""
    t5: Any = next(m for m in model.modules() if isinstance(m, PreTrainedModel))  # PEFT wraps it
    end = t5.config.eos_token_id

    def decide(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if kwargs.get("labels") is None:
            step = outputs.past_key_values.get_seq_length()
            wanted = torch.tensor([lengths[int(n)] for n in kwargs["attention_mask"].sum(1)])
            wanted = wanted.repeat_interleave(len(outputs.logits) // len(wanted))  # one source for its beams
            logit = torch.where(wanted <= step, 1e4, -1e4)
            outputs.logits[:, -1, end] = logit.to(outputs.logits)
        return outputs

    t5.register_forward_hook(decide, with_kwargs=True)
