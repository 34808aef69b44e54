"""The matrix of families and checks: what is expected of each cell, and the page about it.

A cell that is neither impossible (by the table of families), nor refused, nor open must pass. The page is
made from the same expectations that the tests hold, so it needs no run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from support.families import is_encoder_decoder
from support.matrix_checks import CHECKS
from support.matrix_models import FAST, LISTED, QUICK, ROWS, Case, model_type

from lora_hf.errors import UserError
from lora_hf.exporting.onnx import FAMILIES
from lora_hf.families import family_of


class Expected(NamedTuple):
    """Expected outcome of a cell: `ok`, `refused`, `impossible` or `not yet`, and the reason."""

    status: str
    reason: str = ""


SAME_GRAPHS = {"ByT5": "T5", "mBART-50": "mBART"}
"""Rows that differ from another in the tokenizer alone, which is not in the graphs."""
OPEN: dict[tuple[str, str], str] = {}
"""(row, check) -> what fails at present. An entry whose check passes is not an error: delete it."""


def expected(row: str, check: str) -> Expected:
    """Return what is expected of a cell."""
    kind = model_type(row)
    if reason := family_of(kind).impossible.get(check):
        return Expected("impossible", reason)
    if check == "export" and kind not in FAMILIES:
        return Expected("refused", "ONNX graphs are written for T5, mT5, UMT5, BART, mBART, NLLB and Pegasus")
    if reason := OPEN.get((row, check)):
        return Expected("not yet", reason)
    return Expected("ok")


def cells(rows: Sequence[str]) -> list[tuple[str, str]]:
    """Return the cells of some rows that no fast test takes and no other row stands for."""
    return [
        (row, check)
        for row in rows
        for check in CHECKS
        if (row not in FAST or check not in QUICK) and not (check == "export" and row in SAME_GRAPHS)
    ]


def hold(case: Case, check: str) -> None:
    """Run a check and require what is expected of its cell."""
    status, reason = expected(case.name, check)
    if status == "ok":
        CHECKS[check](case)
    elif status == "not yet":
        try:
            CHECKS[check](case)
        except Exception as error:
            pytest.xfail(f"{reason}: {error}")
    else:  # still refused, or still impossible
        with pytest.raises(UserError if status == "refused" else Exception):
            CHECKS[check](case)


def not_tried() -> list[str]:
    """Return the encoder-decoders of Transformers' list that have no row."""
    tried = {model_type(row) for row in ROWS}
    return [name for name in LISTED if name not in tried and is_encoder_decoder(name)]


HEAD = """# Models

Every encoder-decoder for text in the list of Transformers (`AutoModelForSeq2SeqLM`), and what works with it.
A tiny model of each family, with a tokenizer of its kind, takes every check in `make test-full`; two
take the quick ones in `make test`. This page is made from what these tests require, by
`python scripts/tools/models_page.py`. A cell that says ok is required to pass. The export of ByT5 and
mBART-50 is that of T5 and mBART: they differ in the tokenizer alone, which a graph does not hold.

"""
WRITTEN = """
## Written folders

`merge` and full fine-tuning read the folder that they wrote by Transformers alone, and compare the logits of
a few tokens with those of the model in memory. A folder that differs is renamed to `NAME.differs`, and the
command ends with an error. Folders of two kinds are not compared; the log then says so:

- Folders of 2 GB and more, because the second copy takes as much memory: `lora-hf merge --check` compares
  them.
- Full fine-tuning in several processes, each of which would wait for the others. Score the folder in one
  process: `lora-hf evaluate --config CONFIG model.model_name_or_path=RUN/model` gives the scores of the run.
"""
SIGNS = {"ok": "ok", "refused": "refused", "impossible": "impossible", "not yet": "not yet"}


def page() -> str:
    """Return docs/models.md."""
    reasons: list[str] = []

    def cell(row: str, check: str) -> str:
        status, reason = expected(row, check)
        if not reason:
            return SIGNS[status]
        if reason not in reasons:
            reasons.append(reason)
        return f"{SIGNS[status]} ({reasons.index(reason) + 1})"

    lines = [f"| family | {' | '.join(CHECKS)} |", "|---" * (len(CHECKS) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(cell(row, check) for check in CHECKS)} |" for row in ROWS]
    text = HEAD + "\n".join(lines) + "\n"
    if reasons:
        text += "\n" + "\n".join(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)) + "\n"
    kinds = {model_type(row): row for row in ROWS}
    limits = [
        f"| {kinds[kind]} | {what} | {why} |\n"
        for kind in sorted(kinds)
        for what, why in family_of(kind).impossible.items()
        if what not in CHECKS
    ]
    if limits:
        text += "\n## Limits\n\n| family | what is not possible | why |\n|---|---|---|\n" + "".join(limits)
    text += "\n## What is checked\n\n"
    text += "\n".join(f"- **{name}**: {_first_line(check.__doc__)}" for name, check in CHECKS.items()) + "\n"
    if names := not_tried():
        text += f"\nNot tried yet: {', '.join(names)}.\n"
    text += WRITTEN
    others = [name for name in LISTED if not is_encoder_decoder(name)]
    text += (
        "\n## Other models\n\nThe list also has speech models without an encoder-decoder for text, which no "
        f"command takes: {', '.join(others)}. These, Whisper, models that read images and models with a "
        "decoder alone can be trained from Python: see "
        "[Speech, images and decoder-only models](other_models.md).\n"
    )
    return text


def _first_line(doc: str | None) -> str:
    return (doc or "").splitlines()[0]
