"""A text that is sent while it is written."""

from os.path import commonprefix

from lora_hf.serving.engine import Written, joined

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Decoded in place of a character whose last bytes are in the next token."""


class GrowingText:
    """The parts of one text as far as they are written, and what of the text has been sent."""

    def __init__(self, parts: int) -> None:
        self._parts: list[str | Written] = [""] * parts
        self._sent = ""

    def update(self, part: int, what: str | Written) -> None:
        """Take the present text of a part, or what it is in the end."""
        self._parts[part] = what

    @property
    def written(self) -> list[Written] | None:
        """The parts; None until all are whole."""
        whole = [part for part in self._parts if isinstance(part, Written)]
        return whole if len(whole) == len(self._parts) else None

    def delta(self) -> str:
        """Return what has not been sent, and count it as sent.

        The text of a part follows when those before it are whole. Nothing is sent for as long as the text
        does not begin with what was sent: the tokenizer joins tokens, or a batch failed and begins again.
        """
        text = self._text()
        is_whole = self.written is not None
        if not is_whole:
            text = text.rstrip(INCOMPLETE)
        if not is_whole and not text.startswith(self._sent):
            return ""
        new = text[len(commonprefix([text, self._sent])) :]
        self._sent = text
        return new

    def _text(self) -> str:
        shown: list[Written] = []
        for part in self._parts:
            if isinstance(part, str):
                return " ".join(filter(None, [*(one.text for one in shown), part]))
            shown.append(part)
        return joined(shown).text
