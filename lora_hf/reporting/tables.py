"""Parts of every table: Markdown, terminal, cells with units."""

from collections.abc import Collection, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lora_hf.scores import Score

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
ON_TOP = "on top of Python and PyTorch"
"""How the memory of a plan is meant on a CPU; a run reports the peak of its whole process."""
Place = tuple[int, int]
"""Line and column of a cell, counted from the header's first."""
DIGITS = 3
"""Decimals of a score on a scale of 1, beside its interval."""


def with_interval(score: Score, value: float, interval: Sequence[float]) -> str:
    """Return a value and its 95 % interval: `0.776 [0.744, 0.807]`."""
    low, high = (score.text(end, DIGITS) for end in interval)
    return f"{score.text(value, DIGITS)} [{low}, {high}]"


def markdown_table(lines: list[list[str]], strong: Collection[Place] = (), is_text: bool = False) -> str:
    """Return a Markdown table from a header and lines: names on the left, figures on the right.

    Args:
        lines: the header first.
        strong: cells in bold.
        is_text: the table holds texts, which are on the left as well.
    """
    header, *rest = (
        [f"**{cell}**" if (row, column) in strong else cell for column, cell in enumerate(line)]
        for row, line in enumerate(lines)
    )
    rows = [header, ["---"] + ["---" if is_text else "---:"] * (len(header) - 1), *rest]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def terminal_table(
    lines: list[list[str]], notes: list[str], strong: Collection[Place] = (), **options: Any
) -> Table:
    """Return a table for the terminal, with notes as its caption.

    Args:
        lines: the header first.
        notes: one line each, wrapped.
        strong: cells in bold.
        options: those of Rich's `Table`.
    """
    header, *rest = lines
    table = Table(
        caption=Text("\n".join(notes)),
        caption_justify="left",
        caption_style="",
        header_style="bold",
        **options,
    )
    for number, name in enumerate(header):
        if number:
            table.add_column(name, justify="right", no_wrap=True, overflow="fold")
        else:
            table.add_column(name)
    for row, line in enumerate(rest, start=1):
        cells = enumerate(line)
        table.add_row(*(Text(cell, "bold" if (row, column) in strong else "") for column, cell in cells))
    return table


def sample_markdown(source: str, written: list[tuple[str, str]]) -> str:
    """Return a quoted source, and below it each output with its author."""
    quoted = "\n".join(f"> {line}  " for line in source.split("\n"))  # two spaces: a line break
    items = "\n".join(f"- {who}: {' '.join(text.split())}" for who, text in written)
    return f"{quoted}\n\n{items}"


def bytes_cell(count: int) -> str:
    """Return `1.4 GiB`, or a dash for none."""
    for size, unit in UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B" if count else "–"


def seconds_cell(seconds: float) -> str:
    """Return `61 s`, `3.2 s`, or a dash for none."""
    return f"{seconds:,.{0 if seconds >= 10 else 1}f} s" if seconds else "–"
