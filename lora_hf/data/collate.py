"""Batches of tokenized rows, with the decoder's inputs where a model does not make them from labels."""

from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq

from lora_hf.families import family_of


def collator(tokenizer: Any, model: Any) -> Any:
    """Return a function from rows to a batch of tensors for the model; labels are padded by -100."""
    pad = DataCollatorForSeq2Seq(tokenizer)
    return lambda rows: with_decoder_inputs(model, pad(rows))


def with_decoder_inputs(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch with `decoder_input_ids`, if the model does not make them from labels itself.

    FSMT's forward takes the source's tokens instead, and its own function writes padding over -100 in labels.
    """
    if family_of(model).shifts_labels or "labels" not in batch or "decoder_input_ids" in batch:
        return batch
    labels: torch.Tensor = batch["labels"]
    return {**batch, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels.clone())}
