"""Summaries from a model: the longest inputs first, in batches of like length, in the order they came."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from lora_hf.adapters.active import adapter_rows, leaving_rows
from lora_hf.adapters.merge import merged_where_exact
from lora_hf.evaluation.decoding import asked_for, decoding_for
from lora_hf.fast.packed import packed
from lora_hf.fast.t5 import faster, why_not

ENCODED_TOKENS = 2048
"""The encoder's share at a time on a CPU: activations stay in its cache, and padding is less."""
logger = logging.getLogger(__name__)


def generate_summaries(
    model: Any,
    tokenizer: Any,
    sources: list[list[int]],
    max_new_tokens: int | list[int],
    batch_size: int = 64,
    batch_tokens: int = 16384,
    on_batch: Callable[[int], None] = lambda rows: None,
    fast_paths: bool = True,
    adapters: list[str | None] | None = None,
    **options: Any,
) -> list[str]:
    """What the model writes for each source.

    In float32 neither sorting nor batching nor the fast paths change a greedy token, unless two logits are
    the same to rounding; in bfloat16 a batch's shape alone can.

    Args:
        model: an encoder-decoder model, with or without adapters; it is put in evaluation mode.
        tokenizer: its tokenizer.
        sources: token ids, a list a dialogue.
        max_new_tokens: the most tokens a summary may have; a list says it for each, and a longer one is cut.
        batch_size: the most dialogues of one batch.
        batch_tokens: the most tokens of source of one batch, padding and beams included.
        on_batch: called with the number of rows after each batch.
        fast_paths: adapters on dense layers are merged meanwhile, and their weights restored bit for bit;
            on a CPU weights are packed; finished rows leave the batch; the encoder takes part of a batch.
        adapters: the adapter each source goes through, None for the base, mixed within a batch as they come;
            without the list all go through the active ones.
        options: further keywords of `generate`, such as `num_beams`.

    Returns:
        One text a source, in the order of `sources`.
    """
    model.eval()
    limits = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(sources)
    searched = options | {"do_sample": False}
    n = asked_for(model, searched).num_beams or 1
    decoding = decoding_for(model, searched) if fast_paths else None
    searched["max_length"] = None  # a checkpoint's own, which would be warned of beside max_new_tokens
    fast = fast_generation(model, merged=adapters is None) if fast_paths else nullcontext()
    texts = [""] * len(sources)
    with fast, torch.inference_mode():
        for rows in _batches([len(ids) * n for ids in sources], batch_size, batch_tokens):
            inputs = padded([sources[i] for i in rows], tokenizer.pad_token_id, model.device)
            chosen = adapter_rows(model, [adapters[i] for i in rows], frozen=True) if adapters else None
            own = [limits[i] for i in rows]
            with chosen or nullcontext():
                if fast_paths:
                    inputs["encoder_outputs"] = _encode(model, **inputs)
                tokens = model.generate(
                    **inputs, max_new_tokens=max(own), **searched, custom_generate=decoding
                )
            tokens = _cut(tokens, own, tokenizer.pad_token_id)
            for i, text in zip(rows, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                texts[i] = text.strip()
            on_batch(len(rows))
    return texts


def _cut(tokens: Tensor, limits: list[int], pad: int) -> Tensor:
    """Tokens (rows, 1 + longest) with padding where a row has had as many as it may."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.masked_fill(places > torch.tensor(limits, device=tokens.device)[:, None], pad)


@contextmanager
def fast_generation(model: Any, merged: bool = True) -> Iterator[None]:
    """Inside the block modules go their faster ways and, if `merged`, adapters on dense layers are merged.

    It may stand in another one, which then has done most of its work.
    """
    reason = why_not(model)
    if reason:
        logger.info("generation without fast paths for norm and activation: %s", reason)
    with ExitStack() as stack:
        if merged:
            stack.enter_context(merged_where_exact(model))
        if not reason:
            stack.enter_context(faster(model))
        stack.enter_context(packed(model))
        yield


def padded(sources: list[list[int]], pad: int, device: torch.device) -> dict[str, Any]:
    """input_ids and attention_mask, (rows, longest), padded on the right."""
    ids = pad_sequence([torch.tensor(row) for row in sources], batch_first=True, padding_value=pad)
    length = torch.tensor([len(row) for row in sources])
    mask = (torch.arange(ids.shape[1]) < length[:, None]).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _batches(lengths: list[int], size: int, tokens: int) -> Iterator[list[int]]:
    """Rows by falling length, as many at a time as the bounds allow, and one at least."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        fits = max(1, min(size, tokens // max(1, lengths[order[0]])))
        yield order[:fits]
        order = order[fits:]


def _encode(model: Any, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
    """The encoder's output; on a CPU in parts, of rows sorted by falling length."""
    encoder, lengths = model.get_encoder(), attention_mask.sum(1).tolist()
    tokens = ENCODED_TOKENS if input_ids.device.type == "cpu" else input_ids.numel()
    parts = []
    with leaving_rows(model) as keep:
        for rows in _batches(lengths, len(lengths), tokens):
            keep(rows)
            longest = max(1, lengths[rows[0]])
            part = {"input_ids": input_ids[rows, :longest], "attention_mask": attention_mask[rows, :longest]}
            parts.append(encoder(**part).last_hidden_state)
    widest = parts[0].shape[1]
    wide = [torch.nn.functional.pad(part, (0, 0, 0, widest - part.shape[1])) for part in parts]
    return BaseModelOutput(last_hidden_state=torch.cat(wide))
