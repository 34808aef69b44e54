"""Summaries from a model: the longest inputs first, in batches of like length, in the order they came."""

from collections.abc import Callable
from typing import Any

import torch


def generate_summaries(
    model: Any,
    tokenizer: Any,
    sources: list[list[int]],
    max_new_tokens: int,
    batch_size: int = 32,
    on_batch: Callable[[int], None] = lambda rows: None,
    **options: Any,
) -> list[str]:
    """What the model writes for each source.

    Sorting by length saves padding, and changes no greedy token in float32; in bfloat16 a batch's shape
    alone can.

    Args:
        model: an encoder-decoder model, with or without adapters; it is put in evaluation mode.
        tokenizer: its tokenizer.
        sources: token ids, a list a dialogue.
        max_new_tokens: the most tokens a summary may have.
        batch_size: dialogues of one batch.
        on_batch: called with the number of rows after each batch.
        options: further keywords of `generate`, such as `num_beams`.

    Returns:
        One text a source, in the order of `sources`.
    """
    model.eval()
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    texts = [""] * len(sources)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [sources[i] for i in rows]}, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(
                **batch.to(model.device),
                max_new_tokens=max_new_tokens,
                max_length=None,
                do_sample=False,
                **options,
            )
        for i, text in zip(rows, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
        on_batch(len(rows))
    return texts
