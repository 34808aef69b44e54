"""Limits of the server, with their defaults."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """Sizes that requests may have, and how long they may take."""

    max_chars: int = 20_000
    """Characters of a dialogue; a longer one is refused with 413."""
    max_new_tokens: int = 256
    """The most summary tokens that a request may ask for; more is 422."""
    max_beams: int = 4
    """The most beams that a request may ask for; more is 422."""
    max_queue: int = 256
    """Requests that may wait for a batch; one more is 503."""
    max_batch: int = 32
    """Dialogues per batch."""
    max_wait: float = 0.01
    """Seconds that a batch waits to be full."""
    timeout: float = 60.0
    """Seconds from a request to its summary; after that it is 504."""
    long: str = "cut"
    """`split` summarizes a dialogue that is too long in parts; `cut` refuses it, or cuts it on request."""
    adapters_dir: Path | None = None
    """The folder below which adapters may be loaded over HTTP; None allows none."""

    @property
    def max_bytes(self) -> int:
        """Bytes of a request's body: JSON takes up to 6 per character, and 12 for rare ones."""
        return 12 * self.max_chars + 4096
