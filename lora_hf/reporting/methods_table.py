"""The study of methods as a table: a line a variant, the same for the terminal and for Markdown."""

from rich.table import Table

from lora_hf.reporting.table import Record, markdown_table, seconds_cell, terminal_table, weights_cell

HEADER = [
    "",
    "ROUGE-1 [95 %]",
    "− lora",
    "p",
    "weights trained",
    "training",
    "peak memory",
    "scoring (÷ base)",
]


def methods_lines(study: Record) -> list[list[str]]:
    """A header, then one line a variant in the config's order."""
    return [HEADER, *(_line(study, name) for name in study["order"])]


def _line(study: Record, name: str) -> list[str]:
    record, (low, high) = study["variants"][name], study["intervals"][name]["rouge1"]
    test = study["against_lora"].get(name)
    return [
        name,
        f"{record['rouge1']:.4f} [{low:.4f}, {high:.4f}]",
        f"{test['difference']:+.4f}" if test else "–",
        f"{test['p_value']:.2g}" if test else "–",
        weights_cell(record),
        seconds_cell(record["train_seconds"]),
        f"{record['peak_memory_mib']:,.0f} MiB",
        f"{seconds_cell(record['eval_seconds'])} ({study['eval_ratio'][name]:.2f})",
    ]


def methods_notes(study: Record) -> list[str]:
    """What stands below the table: how it was measured."""
    record = study["variants"]["lora"]
    seeds = f", means of {len(record['seeds'])} seeds" if "seeds" in record else ""
    return [
        f"{record['n_examples']:,} test dialogues{seeds}; 95 % intervals by bootstrap over dialogues.",
        "− lora: the difference in ROUGE-1, and the p value of its paired test by dialogue.",
        "Scoring writes the summaries with what was trained left unmerged; longer summaries take longer. "
        "scripts/generation_time.py measures the same work side by side, merged too.",
        f"{record['base_model']} in {record['dtype']} on {record['device']}.",
    ]


def methods_markdown(study: Record) -> str:
    """The table and its notes as Markdown."""
    notes = "\n".join(f"- {note}" for note in methods_notes(study))
    return f"# Methods side by side\n\n{markdown_table(methods_lines(study))}\n\n{notes}\n"


def methods_terminal(study: Record) -> Table:
    """The table for a terminal."""
    return terminal_table(methods_lines(study), methods_notes(study))
