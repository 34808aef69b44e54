"""Parts of every table: Markdown, terminal, cells with units."""

from typing import Any

from rich.table import Table

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def markdown_table(lines: list[list[str]]) -> str:
    """Return a Markdown table from a header and lines: names on the left, figures on the right."""
    header, *rest = lines
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *rest]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def terminal_table(lines: list[list[str]], notes: list[str], **options: Any) -> Table:
    """Return a table for the terminal, with notes as its caption; options are those of Rich's `Table`."""
    header, *rest = lines
    caption = "\n".join(notes)
    table = Table(caption=caption, caption_justify="left", caption_style="", header_style="bold", **options)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in rest:
        table.add_row(*line)
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
