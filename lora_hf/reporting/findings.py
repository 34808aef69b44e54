"""What a check found, for the terminal: a word in color, the check, what was seen, the remedy below it."""

from typing import Any

from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "fault": "bold red", "unknown": "yellow"}
WIDTH = 12
"""Of the checks' names, the longest of which is `fingerprint`."""


def finding_terminal(record: dict[str, Any]) -> Table:
    """One finding; all have their columns at the same places.

    Args:
        record: `state` (a key of `STYLES`), `check`, `title`, `remedy`.
    """
    table = Table.grid(padding=(0, 1))
    table.add_column(width=max(map(len, STYLES)))
    table.add_column(width=WIDTH)
    table.add_column(overflow="fold")
    title = Text(record["title"])  # no markup: it quotes what is examined
    table.add_row(Text(record["state"], STYLES[record["state"]]), Text(record["check"], "bold"), title)
    if record["remedy"]:
        table.add_row("", "", Text.assemble(("remedy: ", "bold"), record["remedy"]))
    return table
