"""Tokenize examples, and count what is truncated and what the tokenizer does not know."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from lora_hf.config import DataConfig
from lora_hf.data.examples import Example
from lora_hf.data.prompts import PLACE, fill_prompt, prompt_template
from lora_hf.data.unknown_tokens import Unknown, UnknownTokens, count_unknown
from lora_hf.errors import UserError

ABSURD = 2**18
"""Characters beyond which only a text's beginning is tokenized; 512 tokens are about 2,000 characters."""
ENCODED = 512
"""Texts per call of the tokenizer, which holds about 100 bytes per token during a call."""
GENERATION_MARGIN = 1.25
"""Factor by which generated summaries may exceed the longest reference."""


class Sources(NamedTuple):
    """Token ids of dialogues in their prompt, and the number of truncated ones."""

    ids: list[list[int]]
    cut: int
    """Dialogues that are too long with the prompt."""
    long: int
    """Dialogues that are too long by themselves, end token included, whatever the prompt."""
    unknown: Unknown
    """Unknown tokens of the dialogues, as far as they are not cut."""
    in_prompt: Unknown
    """Unknown tokens of the prompt alone."""


@dataclass(frozen=True)
class Truncation:
    """The number of truncated dialogues and summaries of a split, and the limits in tokens."""

    split: str
    n: int
    cut_sources: int
    long_dialogues: int
    max_source_length: int
    cut_targets: int | None = None
    max_target_length: int | None = None

    def __str__(self) -> str:
        text = f"{self.split}: {self.cut_sources:,} of {self.n:,} dialogues are cut at "
        text += f"{self.max_source_length} tokens"
        if self.long_dialogues < self.cut_sources:
            text += f", prompt included ({self.long_dialogues:,} of {self.n:,} without it)"
        if self.cut_targets is None:
            return text
        return f"{text}, {self.cut_targets:,} summaries at {self.max_target_length}"


class TokenizedDialogues(Dataset):
    """Rows of `input_ids`, `attention_mask` and `labels`, one per (dialogue, reference)."""

    def __init__(self, examples: list[Example], tokenizer: Any, config: DataConfig, split: str) -> None:
        pairs = [(example.dialogue, reference) for example in examples for reference in example.references]
        sources = encode_sources([dialogue for dialogue, _ in pairs], tokenizer, config)
        limit = config.max_target_length
        references = [_beginning(reference, limit, tokenizer) for _, reference in pairs]
        targets, end = _encode(references, tokenizer), ending(tokenizer)
        self.added_end = None if tokenizer.eos_token_id in end else tokenizer.eos_token
        """The end token, where the tokenizer adds none to a text; each row of labels gets it here."""
        if self.added_end is not None:
            end = [tokenizer.eos_token_id]
            targets = [target + end for target in targets]
        self.rows = [
            {
                "input_ids": source,
                "attention_mask": [1] * len(source),
                "labels": target if len(target) <= limit else target[: max(0, limit - len(end))] + end,
            }
            for source, target in zip(sources.ids, targets, strict=True)
        ]
        self.target_lengths = [len(target) for target in targets]
        cut_targets = sum(length > limit for length in self.target_lengths)
        self.truncation = Truncation(
            split, len(pairs), sources.cut, sources.long, config.max_source_length, cut_targets, limit
        )
        summaries = count_unknown(references, [row["labels"] for row in self.rows], tokenizer)
        self.unknown = UnknownTokens(split, sources.unknown, summaries)
        self.unknown_in_prompt = sources.in_prompt

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def encode_sources(dialogues: list[str], tokenizer: Any, config: DataConfig) -> Sources:
    """Return the token ids of each dialogue in its prompt, at most `max_source_length`.

    A long dialogue loses its last tokens; the text after it in the prompt ("Summary: ") is kept.

    Raises:
        UserError: the prompt alone fills `max_source_length`, or the tokenizer lacks a special token.
    """
    if missing := missing_tokens(tokenizer):
        raise UserError(f"the tokenizer has no {missing[0]}: name one in its tokenizer_config.json")
    template, limit = prompt_template(config.prompt), config.max_source_length
    prompt_length = len(_encode([fill_prompt(template, "")], tokenizer)[0])
    if prompt_length >= limit:
        raise UserError(
            f"data.max_source_length={limit} leaves no room for a dialogue: the prompt alone has "
            f"{prompt_length} tokens"
        )
    dialogues = [_beginning(dialogue, limit, tokenizer) for dialogue in dialogues]
    ids = _encode([fill_prompt(template, dialogue) for dialogue in dialogues], tokenizer)
    after = tokenizer(template.split(PLACE)[-1], add_special_tokens=False).input_ids
    tail = [*after, *ending(tokenizer)]
    cut = [number for number, row in enumerate(ids) if len(row) > limit]
    for number in cut:
        ids[number] = ids[number][: limit - len(tail)] + tail
    alone = _encode([dialogues[number] for number in cut], tokenizer)
    around = template.split(PLACE)  # not as one text, in which T5 makes one token of unknown neighbors
    in_prompt = count_unknown(around, _encode(around, tokenizer), tokenizer)
    unknown = count_unknown(dialogues, ids, tokenizer, expected=in_prompt.unknown)
    return Sources(ids, len(cut), sum(len(row) > limit for row in alone), unknown, in_prompt)


def ending(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer adds at the end of a text: T5 `</s>`, T5Gemma none."""
    whole, text = (tokenizer("a", add_special_tokens=special).input_ids for special in (True, False))
    return whole[_after_last(text, whole) :]


def missing_tokens(tokenizer: Any) -> list[str]:
    """Return the special tokens that training needs and the tokenizer does not have."""
    return [what for what in ("eos_token", "pad_token") if getattr(tokenizer, what) is None]


def _after_last(part: list[int], whole: list[int]) -> int:
    """Return the index behind the last occurrence of `part` in `whole`, or the length of `whole`."""
    starts = range(len(whole) - len(part), -1, -1)
    return next((at + len(part) for at in starts if whole[at : at + len(part)] == part), len(whole))


def _beginning(text: str, limit: int, tokenizer: Any) -> str:
    """Return a beginning of a huge text that has more than `limit` tokens; the rest would be cut anyway.

    Tokenizing a row of 32 MB as a whole took 2 GiB.
    """
    n = max(ABSURD, limit)
    while n < len(text) and len(_encode([text[:n]], tokenizer)[0]) <= 2 * limit:
        n *= 4
    return text[:n]


def generation_length(target_lengths: list[int], limit: int) -> int:
    """Return the largest length of a summary: a quarter above the longest reference, at most `limit`.

    The library's default of 20 tokens silently cuts summaries.
    """
    return min(limit, math.ceil(max(target_lengths) * GENERATION_MARGIN))


def _encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    pieces = (texts[at : at + ENCODED] for at in range(0, len(texts), ENCODED))
    return [ids for piece in pieces for ids in tokenizer(piece, verbose=False).input_ids]
