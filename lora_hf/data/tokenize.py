"""Examples as token ids, with what was cut said before training and not found out after it."""

import math
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from lora_hf.config import DataConfig
from lora_hf.data.load import Example
from lora_hf.data.prompt import PLACE, fill_prompt, prompt_template

GENERATION_MARGIN = 1.25
"""Generated summaries may be this much longer than the longest reference seen."""


@dataclass(frozen=True)
class Truncation:
    """How many dialogues and summaries of a split are cut, and at how many tokens."""

    split: str
    n: int
    cut_sources: int
    cut_targets: int
    max_source_length: int
    max_target_length: int

    def __str__(self) -> str:
        sources = f"{self.cut_sources:,} of {self.n:,} dialogues are cut at {self.max_source_length} tokens"
        targets = f"{self.cut_targets:,} summaries at {self.max_target_length}"
        return f"{self.split}: {sources}, {targets}"


class TokenizedDialogues(Dataset):
    """Rows of `input_ids`, `attention_mask` and `labels`, one for each (dialogue, reference).

    The prompt's own end ("Summary: ") is kept when a dialogue is too long: the dialogue's last tokens go.
    """

    def __init__(self, examples: list[Example], tokenizer: Any, config: DataConfig, split: str) -> None:
        pairs = [(example.dialogue, reference) for example in examples for reference in example.references]
        sources, cut_sources = encode_sources([p[0] for p in pairs], tokenizer, config)
        targets = _encode([p[1] for p in pairs], tokenizer)
        limit = config.max_target_length
        end = [tokenizer.eos_token_id]
        self.rows = [
            {
                "input_ids": source,
                "attention_mask": [1] * len(source),
                "labels": target if len(target) <= limit else target[: limit - 1] + end,
            }
            for source, target in zip(sources, targets, strict=True)
        ]
        self.target_lengths = [len(target) for target in targets]
        cut_targets = sum(length > limit for length in self.target_lengths)
        self.truncation = Truncation(
            split, len(pairs), cut_sources, cut_targets, config.max_source_length, limit
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def encode_sources(dialogues: list[str], tokenizer: Any, config: DataConfig) -> tuple[list[list[int]], int]:
    """Token ids of each dialogue in its prompt, at most `max_source_length`, and how many were cut."""
    template = prompt_template(config.prompt)
    ids = _encode([fill_prompt(template, dialogue) for dialogue in dialogues], tokenizer)
    tail = tokenizer(template.split(PLACE)[-1]).input_ids
    keep = max(config.max_source_length - len(tail), 0)
    cut = [len(row) > config.max_source_length for row in ids]
    shortened = [
        (row[:keep] + tail)[-config.max_source_length :] if is_cut else row
        for row, is_cut in zip(ids, cut, strict=True)
    ]
    return shortened, sum(cut)


def generation_length(target_lengths: list[int], limit: int) -> int:
    """How many tokens a summary may have: a quarter more than the longest reference, at most `limit`.

    The library default of 20 cuts summaries in silence.
    """
    return min(limit, math.ceil(max(target_lengths) * GENERATION_MARGIN))


def _encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, verbose=False).input_ids
    return ids
