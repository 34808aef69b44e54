"""A finding of a check for the terminal: state in color, check, title, and the remedy below."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "fault": "bold red", "unknown": "yellow"}
WIDTH = 12
"""Width of the column with the checks' names; the longest is `fingerprint`."""


def finding_terminal(record: Mapping[str, str]) -> Table:
    """Return one finding as a table; the columns of all findings are aligned.

    Args:
        record: `state` (a key of `STYLES`), `check`, `title`, `remedy`.
    """
    table = Table.grid(padding=(0, 1))
    table.add_column(width=max(map(len, STYLES)))
    table.add_column(width=WIDTH)
    table.add_column(overflow="fold")
    title = Text(record["title"])  # no markup: it quotes the examined files
    table.add_row(Text(record["state"], STYLES[record["state"]]), Text(record["check"], "bold"), title)
    if record["remedy"]:
        table.add_row("", "", Text.assemble(("remedy: ", "bold"), record["remedy"]))
    return table
