"""Tokenize examples, and count what is truncated and what the tokenizer does not know.

Line ends are the same whichever way a file has written them (`prompts.unix_lines`).

Special tokens are those that the tokenizer itself puts around a text, in the config's languages. What looks
like one inside a text (`</s>` in HTML) is text: it would end a summary where it stands.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from lora_hf.arguments import check_texts
from lora_hf.config import DataConfig
from lora_hf.config.task import Task
from lora_hf.data.examples import Example
from lora_hf.data.prompts import PLACE, fill_prompt, prompt_template, unix_lines
from lora_hf.data.unknown_tokens import Unknown, UnknownTokens, count_unknown
from lora_hf.errors import UserError, counted
from lora_hf.models.languages import frame, in_languages, target_vocabulary

ABSURD = 2**18
"""Characters beyond which only a text's beginning is tokenized; 512 tokens are about 2,000 characters."""
ENCODED = 512
"""Texts per call of the tokenizer, which holds about 100 bytes per token during a call."""
GENERATION_MARGIN = 1.25
"""Factor by which generated summaries may exceed the longest reference."""
CONTROL = ("bos_token", "eos_token", "pad_token", "sep_token", "cls_token")
"""Special tokens that say where a text begins or ends."""


class Sources(NamedTuple):
    """Token ids of dialogues in their prompt, and the number of truncated ones."""

    ids: list[list[int]]
    cut: int
    """Dialogues that are too long with the prompt."""
    long: int
    """Dialogues that are too long by themselves, end token included, whatever the prompt."""
    lengths: list[int]
    """Their lengths in the prompt before they are cut; those of huge texts by their beginnings."""
    unknown: Unknown
    """Unknown tokens of the dialogues, as far as they are not cut."""
    in_prompt: Unknown
    """Unknown tokens of the prompt alone."""
    with_special: int
    """Dialogues that contain a special token of the tokenizer, which is read as text."""


class Targets(NamedTuple):
    """Token ids of summaries, as labels."""

    ids: list[list[int]]
    lengths: list[int]
    """Their lengths before they are cut."""
    added_end: str | None
    """The end token, where the tokenizer adds none to a text; each row of labels gets it here."""
    unknown: Unknown
    with_special: int
    """Summaries that contain a special token of the tokenizer, which is read as text."""


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
    sources: str = "dialogues"
    target: str = "summary"
    targets: str = "summaries"
    source_lengths: Sequence[int] = ()
    """Numbers of tokens of each row before anything is cut, where they are kept: for `doctor`."""
    target_lengths: Sequence[int] = ()

    def in_words_of(self, task: Task) -> "Truncation":
        """Return the same with the task's words for the texts."""
        return replace(self, sources=task.sources, target=task.target, targets=task.targets)

    def __str__(self) -> str:
        text = f"{self.split}: {self.cut_sources:,} of {self.n:,} {self.sources} are cut at "
        text += f"{self.max_source_length} tokens"
        if self.long_dialogues < self.cut_sources:
            text += f", prompt included ({self.long_dialogues:,} of {self.n:,} without it)"
        if self.cut_targets is None:
            return text
        return f"{text}, {counted(self.cut_targets, self.target, self.targets)} at {self.max_target_length}"


class TokenizedDialogues(Dataset):
    """Rows of `input_ids`, `attention_mask` and `labels`, one per (dialogue, reference)."""

    def __init__(self, examples: list[Example], tokenizer: Any, config: DataConfig, split: str) -> None:
        pairs = [(example.dialogue, reference) for example in examples for reference in example.references]
        sources = encode_sources([dialogue for dialogue, _ in pairs], tokenizer, config)
        self.references = [reference for _, reference in pairs]
        """The text of each row's labels, which may be cut."""
        targets = encode_targets(self.references, tokenizer, config)
        limit = config.max_target_length
        self.rows = [
            {"input_ids": source, "attention_mask": [1] * len(source), "labels": target}
            for source, target in zip(sources.ids, targets.ids, strict=True)
        ]
        self.target_lengths, self.added_end = targets.lengths, targets.added_end
        cut_targets = sum(length > limit for length in self.target_lengths)
        self.truncation = Truncation(
            split,
            len(pairs),
            sources.cut,
            sources.long,
            config.max_source_length,
            cut_targets,
            limit,
            source_lengths=sources.lengths,
            target_lengths=targets.lengths,
        )
        self.unknown = UnknownTokens(split, sources.unknown, targets.unknown)
        self.unknown_in_prompt = sources.in_prompt
        self.with_special = sources.with_special + targets.with_special
        """Dialogues and summaries that contain a special token of the tokenizer, which is read as text."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def encode_sources(dialogues: list[str], tokenizer: Any, config: DataConfig) -> Sources:
    """Return the token ids of each dialogue in its prompt, at most `max_source_length`.

    A long dialogue loses its last tokens; the text after it in the prompt ("Summary: ") is kept, and so is
    what the tokenizer puts before and after a text, such as the source language.

    Raises:
        UserError: `dialogues` is not a list of texts, the prompt alone fills `max_source_length`, or the
            tokenizer lacks a special token or a language.
    """
    check_texts("dialogues", dialogues)
    if missing := missing_tokens(tokenizer):
        raise UserError(f"the tokenizer has no {missing[0]}: name one in its tokenizer_config.json")
    template, limit = prompt_template(config.prompt), config.max_source_length
    with in_languages(tokenizer, config):
        prompt_length = len(_encode([fill_prompt(template, "")], tokenizer)[0])
        if prompt_length >= limit:
            raise UserError(
                f"data.max_source_length={limit} leaves no room for text: the prompt alone has "
                f"{prompt_length} tokens"
            )
        whole = list(map(unix_lines, dialogues))
        dialogues = [_beginning(dialogue, limit, tokenizer) for dialogue in whole]
        ids, with_special = _encode_texts(dialogues, tokenizer, template)
        after = tokenizer(template.split(PLACE)[-1], add_special_tokens=False).input_ids
        tail = [*after, *frame(tokenizer).tail]
        lengths = [
            len(row) if len(part) == len(text) else round(len(row) * len(text) / len(part))
            for row, part, text in zip(ids, dialogues, whole, strict=True)
        ]
        cut = [number for number, length in enumerate(lengths) if length > limit]
        for number in cut:
            ids[number] = ids[number][: limit - len(tail)] + tail
        alone = _encode([dialogues[number] for number in cut], tokenizer)
        around = template.split(PLACE)  # not as one text, in which T5 makes one token of unknown neighbors
        in_prompt = count_unknown(around, _encode(around, tokenizer), tokenizer)
        unknown = count_unknown(dialogues, ids, tokenizer, expected=in_prompt.unknown)
    long = sum(len(row) > limit for row in alone)
    return Sources(ids, len(cut), long, lengths, unknown, in_prompt, with_special)


def source_lengths(dialogues: list[str], tokenizer: Any, config: DataConfig) -> list[int]:
    """Return the number of tokens of each dialogue in its prompt, before anything is cut."""
    with in_languages(tokenizer, config):
        texts = list(map(unix_lines, dialogues))
        ids, _ = _encode_texts(texts, tokenizer, prompt_template(config.prompt))
        return [len(row) for row in ids]


def encode_targets(references: list[str], tokenizer: Any, config: DataConfig) -> Targets:
    """Return the labels of each summary, at most `max_target_length`.

    They are what the tokenizer makes of a `text_target`, with an end token where it adds none; a long summary
    loses the last tokens of its text. Seamless begins with the token that the decoder starts from, its end
    token; it is left out of the labels, because a model that learned it would end before it begins.

    Raises:
        UserError: the tokenizer does not know a language.
    """
    limit, end = config.max_target_length, tokenizer.eos_token_id
    with in_languages(tokenizer, config):
        head, tail = frame(tokenizer, is_target=True)
        references = [_beginning(unix_lines(reference), limit, tokenizer) for reference in references]
        ids, with_special = _encode_texts(references, tokenizer, is_target=True)
    if head[:1] == [end]:
        ids = [row[1:] for row in ids]
    added_end = None if end in tail else tokenizer.eos_token
    if added_end is not None:
        ids, tail = [[*row, end] for row in ids], [*tail, end]
    lengths = [len(row) for row in ids]
    ids = [row if len(row) <= limit else row[: max(0, limit - len(tail))] + tail for row in ids]
    return Targets(ids, lengths, added_end, count_unknown(references, ids, tokenizer), with_special)


def missing_tokens(tokenizer: Any) -> list[str]:
    """Return the special tokens that training needs and the tokenizer does not have."""
    return [what for what in ("eos_token", "pad_token") if getattr(tokenizer, what) is None]


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


def _encode(texts: list[str], tokenizer: Any, is_target: bool = False, **options: Any) -> list[list[int]]:
    pieces = (texts[at : at + ENCODED] for at in range(0, len(texts), ENCODED))
    if not is_target:
        return [ids for piece in pieces for ids in tokenizer(piece, verbose=False, **options).input_ids]
    with target_vocabulary(tokenizer):
        encoded = (tokenizer(text_target=piece, verbose=False, **options).input_ids for piece in pieces)
        return [ids for rows in encoded for ids in rows]


def _encode_texts(
    texts: list[str], tokenizer: Any, template: str = PLACE, is_target: bool = False
) -> tuple[list[list[int]], int]:
    """Tokenize each text in the template; return the ids, and the number of texts with special tokens.

    These are split like other text. Where the tokenizer cannot (T5's vocabulary holds `</s>` itself), or the
    template has special tokens that must not be split, a space behind their first character divides them.
    """

    def encode(texts: list[str], **options: Any) -> list[list[int]]:
        return _encode([fill_prompt(template, text) for text in texts], tokenizer, is_target, **options)

    def controls(row: list[int]) -> int:
        return sum(token in control_ids for token in row)

    ids = encode(texts)
    tokens = {name: getattr(tokenizer, name) for name in CONTROL}
    control = re.compile("|".join(re.escape(token) for token in set(tokens.values()) if token))
    found = [number for number, text in enumerate(texts) if control.search(text)]
    if found:
        control_ids = {getattr(tokenizer, f"{name}_id") for name in tokens}
        expected = controls(encode([""])[0])
    for number in found:
        row = encode([texts[number]], split_special_tokens=True)[0]
        if controls(row) != expected:
            row = encode([control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", texts[number])])[0]
        ids[number] = row
    return ids, len(found)
