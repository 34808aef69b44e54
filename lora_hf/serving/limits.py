"""How much a server takes on: one default each."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What is refused, and how long anyone waits."""

    max_chars: int = 20_000
    """Characters of a dialogue; a longer one is 413."""
    max_new_tokens: int = 256
    """The most tokens of summary that a request may ask for; more is 422."""
    max_beams: int = 4
    """The most beams that a request may ask for; more is 422."""
    max_queue: int = 256
    """Requests that wait for a batch; one more is 503."""
    max_batch: int = 32
    """Dialogues written at once."""
    max_wait: float = 0.01
    """Seconds that a batch which is not full waits for more."""
    timeout: float = 60.0
    """Seconds from a request to its summary; later is 504."""
    adapters_dir: Path | None = None
    """The folder from below which adapters may be loaded over HTTP; None: from nowhere."""

    @property
    def max_bytes(self) -> int:
        """Of a request's body: JSON may take 6 bytes for a character, and 12 for one of the rarer ones."""
        return 12 * self.max_chars + 4096
