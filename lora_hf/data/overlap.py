"""Count the dialogues that are in more than one split, before a model trains on what it is scored on.

Whitespace, case and characters without a shape are ignored, and compatibility characters are equal (Unicode's
NFKC): T5's tokenizer reads a line break as a space, and 47 of DialogSum's 500 validation dialogues repeat a
training dialogue with other spaces. Dialogues are compared by hash, 8 bytes each, so that a split that is
read during training is not held in memory.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from lora_hf.config.task import SUMMARIZATION, Task
from lora_hf.data.examples import Example
from lora_hf.data.split_names import Split
from lora_hf.errors import few

MOST_SHARED = 0.01
"""Share of a split's dialogues from which on its scores no longer measure unseen dialogues."""
REMEDY = "remove them from one of the splits: scores on text that was trained on are too high"
SPACES = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"
"""The whitespace of ASCII as Python defines it; NFKC makes spaces of the others."""
UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f\u00ad\u034f\u061c\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
"""Characters without a shape (Unicode's Default_Ignorable_Code_Point): T5's tokenizer drops most of them, and
copies of a text may have them or not."""
NONE_SHARED = "no %s is in more than one split"


@dataclass(frozen=True)
class SharedDialogues:
    """The dialogues of a split that also stand in an earlier one."""

    split: str
    n: int
    """Dialogues of the split."""
    earlier: str
    """The earlier split, or the part of it that was compared."""
    ids: tuple[str, ...]
    """Ids of the shared dialogues, in the order of the split."""
    sources: str = SUMMARIZATION.sources
    """What messages call them."""

    def in_words_of(self, task: Task) -> "SharedDialogues":
        """Return the same with the task's word for the texts."""
        return replace(self, sources=task.sources)

    @property
    def is_fault(self) -> bool:
        """True if the shared dialogues are so many that scores on the split mislead."""
        return len(self.ids) >= MOST_SHARED * self.n

    def __str__(self) -> str:
        share = f"{len(self.ids):,} of {self.n:,} {self.split} {self.sources} ({len(self.ids) / self.n:.1%})"
        return f"{share} are also in {self.earlier}, whitespace and case ignored: {few(self.ids)}"


def dialogue_key(dialogue: str) -> int:
    """Return a 64-bit hash of a dialogue without whitespace, case and characters that have no shape.

    It differs between processes.
    """
    return hash(plain_text(UNSEEN.sub("", dialogue)))


def plain_text(dialogue: str) -> bytes:
    """Return a dialogue without whitespace and case, with compatibility characters made equal.

    Texts are divided into splits by it: if it changed, rows that were trained on could become test rows.
    """
    text = dialogue if dialogue.isascii() else unicodedata.normalize("NFKC", dialogue)
    return text.casefold().encode().translate(None, SPACES)


def dialogue_keys(dialogues: Iterable[str]) -> "array[int]":
    """Return the keys of dialogues, 8 bytes each."""
    return array("q", map(dialogue_key, dialogues))


def home_of_byte(byte: int) -> Split:
    """Return the split of a dialogue by the first byte of its hash: 80/10/10."""
    tenth = byte % 10
    return "test" if tenth == 9 else "validation" if tenth == 8 else "train"


def homes_of_copies(dialogues: Iterable[str]) -> dict[int, Split]:
    """Return the split of dialogues that have copies with other spaces, case or forms of characters.

    Each group has the home that its copy with the smallest hash would have alone. 16 bytes per dialogue are
    held in memory.

    Returns:
        By `dialogue_key`; empty where there are no such copies.
    """
    keys, letters = array("q"), array("Q")
    for dialogue in dialogues:
        keys.append(dialogue_key(dialogue))
        letters.append(int.from_bytes(sha256(dialogue.encode()).digest()[:8], "big"))
    pairs = np.unique(np.array([np.array(keys).view(np.uint64), np.array(letters)]), axis=1)  # sorted
    found, first, counts = np.unique(pairs[0].view(np.int64), return_index=True, return_counts=True)
    several = zip(found[counts > 1], pairs[1][first[counts > 1]], strict=True)
    return {int(key): home_of_byte(int(letter) >> 56) for key, letter in several}


def shared_dialogues(
    train: Iterable[int], train_name: str, held_out: dict[str, Sequence[Example]]
) -> list[SharedDialogues]:
    """Return the overlap of each split with each split before it, where there is one.

    Args:
        train: keys of the training dialogues.
        train_name: what messages call them, such as `train`.
        held_out: the other splits by name, in order.
    """
    keys = {split: [dialogue_key(example.dialogue) for example in rows] for split, rows in held_out.items()}
    in_train = set().union(*keys.values()).intersection(train)  # never a set of all training dialogues
    earlier: dict[str, set[int]] = {train_name: in_train}
    found: list[SharedDialogues] = []
    for split, rows in held_out.items():
        for name, known in earlier.items():
            ids = tuple(row.id for row, key in zip(rows, keys[split], strict=True) if key in known)
            if ids:
                found.append(SharedDialogues(split, len(rows), name, ids))
        earlier[split] = set(keys[split])
    return found
