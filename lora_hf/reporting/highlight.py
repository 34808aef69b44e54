"""Marking of the words that an output shares with its references, by their stems as ROUGE counts them."""

import re
from collections.abc import Sequence
from html import escape

from lora_hf.evaluation.words import choose_tokenizer


def marked(text: str, references: Sequence[str], language: str | None = None) -> str:
    """Return the text as escaped HTML, with the words of any reference in `<mark>`."""
    tokenizer = choose_tokenizer(references, language)
    of_pairs = [tokenizer.for_pair(text, reference) for reference in references]
    tokenizer = next((own for own in of_pairs if own != tokenizer), tokenizer)
    known = {word for reference in references for word in tokenizer.tokenize(reference)}
    parts = [(escape(part), word in known) for part, word in tokenizer.parts(text)]
    html = "".join(f"<mark>{part}</mark>" if is_known else part for part, is_known in parts)
    return re.sub(r"</mark>(\s*)<mark>", r"\1", html)  # one mark for adjacent words
