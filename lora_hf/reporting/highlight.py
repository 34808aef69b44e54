"""Marking of the words that an output shares with its references, or does not, by the stems of ROUGE."""

import re
from collections.abc import Sequence
from html import escape

from lora_hf.evaluation.words import choose_tokenizer


def marked(
    text: str, references: Sequence[str], language: str | None = None, differences: bool = False
) -> str:
    """Return the text as escaped HTML, with the words of any reference in `<mark>`.

    Args:
        text: what a model wrote.
        references: what people wrote.
        language: that of the references, if it is known.
        differences: mark the words that are in no reference instead.
    """
    tokenizer = choose_tokenizer(references, language)
    of_pairs = [tokenizer.for_pair(text, reference) for reference in references]
    tokenizer = next((own for own in of_pairs if own != tokenizer), tokenizer)
    known = {word for reference in references for word in tokenizer.tokenize(reference)}
    parts = [
        (escape(part), bool(word) and (word in known) != differences) for part, word in tokenizer.parts(text)
    ]
    html = "".join(f"<mark>{part}</mark>" if is_marked else part for part, is_marked in parts)
    return re.sub(r"</mark>(\s*)<mark>", r"\1", html)  # one mark for adjacent words
