"""Batches of tokenized rows, with the decoder's inputs where a model does not make them from labels."""

import logging
from contextlib import suppress
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq

from lora_hf.adapters.embeddings import embedding_rows
from lora_hf.errors import UserError
from lora_hf.families import family_of

logger = logging.getLogger(__name__)


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


def check_tokens(model: Any, batch: dict[str, Any]) -> None:
    """Check the token ids of a batch that a script made; PyTorch's own error is an index out of range.

    Args:
        model: the Transformers model, whose embeddings have a row for each token.
        batch: tensors of token ids; anything else in it is not read.

    Raises:
        UserError: a token without an embedding, or labels without tokens.
    """
    ids, labels = batch.get("input_ids"), batch.get("labels")
    head = _part(model, "get_output_embeddings")
    for name, given, rows in (
        ("input_ids", ids, embedding_rows(model)),
        ("labels", labels, getattr(head, "out_features", None)),
    ):
        if not isinstance(given, torch.Tensor) or given.is_floating_point() or rows is None:
            continue
        if not given.numel():
            raise UserError(f"a batch has {name} without a token: leave out the rows that are empty")
        if (largest := int(given.max())) >= rows:
            raise UserError(
                f"{name} of a batch hold the token {largest}, and the model has {rows:,}: use the model's "
                "own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) before adding adapters"
            )


def _part(model: Any, getter: str) -> Any:
    """Return the module that a model's method returns, or None where it has no such method or module."""
    with suppress(AttributeError, NotImplementedError):
        return getattr(model, getter)()
    return None


def warn_of_padded_labels(model: Any, batch: dict[str, Any]) -> None:
    """Warn of labels that end in padding tokens, on which the model would be trained."""
    labels, config = batch.get("labels"), getattr(model, "config", None)
    pad, end = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2 or pad is None or pad == end:
        return
    if rows := int((labels[:, -1] == pad).sum()):
        logger.warning(
            "the labels of %d of %d rows of the first batch end in the padding token %d, so that padding is "
            "trained and is part of the loss: replace it by -100, as DataCollatorForSeq2Seq pads labels",
            *(rows, len(labels), pad),
        )


def check_padding_side(model: Any, collate: Any, batch: dict[str, Any]) -> None:
    """Check that a script's batches for an encoder-decoder are padded after the text, as decoders expect.

    Padding before labels becomes the decoder's input between its start and the text, without a mask, so that
    the loss of a row depends on the other rows.

    Args:
        model: the Transformers model; one that is not an encoder-decoder may be padded on either side.
        collate: the function that makes batches; its tokenizer, if it has one, pads them.
        batch: the first one; other functions are judged by its labels.

    Raises:
        UserError: the function's tokenizer pads on the left, as Gemma's do.
    """
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return
    if getattr(getattr(collate, "tokenizer", None), "padding_side", "right") == "left":
        raise UserError(
            "the tokenizer of data_collator pads on the left, and the decoder would read the padding between "
            "its start and the text: set tokenizer.padding_side = 'right'"
        )
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2:
        return
    padding = labels == -100
    before = padding.long().cumprod(1).sum(1)
    if int(before.min()) < int(before.max()) and not padding[:, -1].any():
        logger.warning(
            "labels of the first batch seem to be padded on the left (%d of %d rows begin with -100): the "
            "decoder reads this padding before the text; pad on the right",
            *(int((before > 0).sum()), len(labels)),
        )
