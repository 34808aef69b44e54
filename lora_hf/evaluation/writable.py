"""References that a tokenizer cannot write, so that no output equals them, whatever the model learns.

An uncased tokenizer writes `yes` for the label `Yes`, T5's joins two spaces and writes a new line as a space.
"""

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

from lora_hf.config import DataConfig
from lora_hf.evaluation.metrics import Scoring
from lora_hf.models.languages import decode, in_languages

AROUND = 20
"""Characters that a message shows on each side of a difference."""
SEARCHED = 200
"""References that are tried at most."""
SHARE = 0.01
"""Share of references from which on they are a fault."""
REMEDY = "write the references as the tokenizer does, or choose another base model or main metric"


class Unwritable(NamedTuple):
    """What some references lose by being tokenized."""

    text: str
    """A sentence; empty if nothing is lost that the main score sees."""
    is_fault: bool = False


def unwritable(
    scoring: Scoring, references: Sequence[Sequence[str]], tokenizer: Any, data: DataConfig
) -> Unwritable:
    """Compare references with the texts that a tokenizer makes of their tokens, by the main score.

    Args:
        scoring: the task and its metrics.
        references: those of each row.
        tokenizer: the model's.
        data: the languages.
    """
    rows = [list(texts) for texts in references if texts][:SEARCHED]
    if not rows:
        return Unwritable("")
    with in_languages(tokenizer, data):
        ids = tokenizer(text_target=[texts[0] for texts in rows], verbose=False).input_ids
    written = [text.strip() for text in decode(tokenizer, ids)]
    other = [(text, known) for text, known in zip(written, rows, strict=True) if text != known[0].strip()]
    if not other:
        return Unwritable("")
    outputs, known = [text for text, _ in other], [texts for _, texts in other]
    main, task = scoring.main, scoring.task
    best, whole = (
        scoring.measure(texts, known).scores[main.name].exact for texts in (outputs, [k[0] for k in known])
    )
    if main.sign * (whole - best) < 1e-3 * max(abs(whole), 1.0):
        return Unwritable("")
    became, was = _first_difference(other[0][0], other[0][1][0].strip())
    text = (
        f"{len(other)} of {len(rows)} test {task.targets} cannot be written by this tokenizer, such as "
        f"{was!r}, which becomes {became!r}: the best possible {main.label} on them is {main.text(best)}"
    )
    return Unwritable(text, len(other) >= SHARE * len(rows))


def _first_difference(one: str, other: str) -> tuple[str, str]:
    """Return the parts of two texts around the first character that differs."""
    same = len(commonprefix([one, other]))
    start = max(0, same - AROUND)
    return one[start : same + AROUND], other[start : same + AROUND]
