"""Count the tokens that a tokenizer does not know, which the model neither reads nor can write.

T5's vocabulary has no `<`, `{` or `~`, and no letters of most languages. The tokenizer replaces them by one
unknown token and says nothing. Tokenizers without an unknown token leave such characters out.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_hf.config.task import SUMMARIZATION, Task

MOST_TOKENS = 0.01
"""Share of unknown tokens in the dialogues from which on the model does not read what people said."""
MOST_SUMMARIES = 0.01
"""Share of summaries with an unknown token from which on the model cannot learn to write them."""
REMEDY = (
    "use a model whose tokenizer has them (google/mt5-small for other languages, google/byt5-small for any "
    "text), or replace them in the data"
)
SEARCHED = 1000
"""Texts that are searched for examples of unknown characters."""
CANDIDATES = 5000
"""Characters or words that are tokenized alone in the search."""
EXAMPLES = 6
"""Examples in a message."""
SEEN = ("L", "N", "P", "S")
"""Unicode's categories of characters that a reader sees: letters, numbers, punctuation and symbols."""
SPACES = "▁Ġ"
"""Characters that stand for a space in tokens."""


@dataclass(frozen=True)
class Unknown:
    """The unknown tokens of some texts."""

    n: int = 0
    """Texts."""
    texts: int = 0
    """Texts with an unknown token."""
    tokens: int = 0
    """Tokens of all texts."""
    unknown: int = 0
    """Unknown ones among them."""
    examples: tuple[str, ...] = ()
    """Characters, or else words, that the tokenizer does not know; the most frequent first."""

    def __str__(self) -> str:
        return f"{self.unknown / self.tokens:.1%} of the tokens, in {self.texts:,} of {self.n:,}"


@dataclass(frozen=True)
class UnknownTokens:
    """The unknown tokens of a split's dialogues and summaries."""

    split: str
    dialogues: Unknown
    summaries: Unknown = field(default_factory=Unknown)
    """Empty where only dialogues were tokenized."""
    words: tuple[str, str] = (SUMMARIZATION.sources, SUMMARIZATION.targets)
    """What messages call the two kinds of texts."""

    def in_words_of(self, task: Task) -> "UnknownTokens":
        """Return the same with the task's words for the texts."""
        return replace(self, words=(task.sources, task.targets))

    def __bool__(self) -> bool:
        return bool(self.dialogues.unknown or self.summaries.unknown)

    @property
    def is_fault(self) -> bool:
        """True if so much is unknown that the model cannot learn the task."""
        dialogues, summaries = self.dialogues, self.summaries
        return (
            dialogues.unknown > MOST_TOKENS * dialogues.tokens
            or summaries.texts > MOST_SUMMARIES * summaries.n
        )

    def __str__(self) -> str:
        parts = dict(zip(self.words, (self.dialogues, self.summaries), strict=True))
        counted = " and ".join(f"{part} {what}" for what, part in parts.items() if part.unknown)
        examples = dict.fromkeys(self.summaries.examples + self.dialogues.examples)
        shown = ", ".join(map(repr, list(examples)[:EXAMPLES]))
        return f"{self.split}: the tokenizer does not know {counted}, such as {shown}"


def unknown_id(tokenizer: Any) -> int | None:
    """Return the id of the unknown token, or None if the tokenizer has none of its own.

    A tokenizer.json can have one that tokenizer_config.json does not name.
    """
    found: int | None = tokenizer.unk_token_id
    if found is None:
        model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        found = tokenizer.get_vocab().get(getattr(model, "unk_token", None))
    return None if found == tokenizer.eos_token_id else found  # a text ends with it


def dropped_characters(texts: Sequence[str], tokenizer: Any) -> set[str]:
    """Return the characters of texts that a tokenizer leaves out: alone, they give no token or a space."""
    seen = set().union(*texts) - set(SPACES)
    candidates = sorted(character for character in seen if unicodedata.category(character)[0] in SEEN)
    if not candidates:
        return set()
    rows = tokenizer(candidates, add_special_tokens=False, verbose=False).input_ids
    tokens = ("".join(map(str, tokenizer.convert_ids_to_tokens(row))) for row in rows)
    return {one for one, text in zip(candidates, tokens, strict=True) if not text.strip(SPACES + " ")}


def count_unknown(
    texts: Sequence[str], ids: Sequence[Sequence[int]], tokenizer: Any, expected: int = 0
) -> Unknown:
    """Count the unknown tokens of tokenized texts. A character that the tokenizer leaves out counts as one.

    Args:
        texts: the texts, for examples.
        ids: their tokens.
        tokenizer: it made them.
        expected: unknown tokens in each row that are not of the text, but of the prompt around it.
    """
    unknown = unknown_id(tokenizer)
    counts = [0 if unknown is None else max(0, list(row).count(unknown) - expected) for row in ids]
    concerned = [text for text, count in zip(texts, counts, strict=True) if count]
    examples = unknown_parts(concerned[:SEARCHED], tokenizer) if concerned else ()
    tokens = sum(map(len, ids))
    if dropped := dropped_characters(texts, tokenizer):
        left_out = [Counter(filter(dropped.__contains__, text)) for text in texts]
        frequent = [character for character, _ in sum(left_out, Counter()).most_common(EXAMPLES)]
        examples = tuple([*frequent, *examples][:EXAMPLES])
        tokens += sum(one.total() for one in left_out)
        counts = [count + one.total() for count, one in zip(counts, left_out, strict=True)]
    return Unknown(len(texts), sum(map(bool, counts)), tokens, sum(counts), examples)


def unknown_parts(texts: Sequence[str], tokenizer: Any) -> tuple[str, ...]:
    """Return the characters that the tokenizer does not know, or else the words, or else the white space.

    The most frequent come first.
    """
    unknown = unknown_id(tokenizer)
    kinds: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: (c for text in texts for c in text if not c.isspace()),
        lambda: (word for text in texts for word in text.split()),
        lambda: (c for text in texts for c in text if c.isspace()),  # a line break
    )
    for kind in kinds:
        parts = Counter(kind())
        candidates = [part for part, _ in parts.most_common(CANDIDATES)]
        rows = tokenizer(candidates, add_special_tokens=False, verbose=False).input_ids
        if found := [part for part, row in zip(candidates, rows, strict=True) if unknown in row]:
            return tuple(found[:EXAMPLES])
    return ()
