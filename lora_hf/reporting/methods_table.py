"""The study of methods as a table: a line a variant, the same for the terminal and for Markdown."""

from rich.table import Table

from lora_hf.reporting.tables import Record, markdown_table, seconds_cell, terminal_table

HEADER = ["", "ROUGE-1 [95 %]", "− lora", "p", "weights", "train", "MiB", "scoring"]


def methods_lines(study: Record) -> list[list[str]]:
    """A header, then one line a variant in the config's order."""
    return [HEADER, *(_line(study, name) for name in study["order"])]


def _line(study: Record, name: str) -> list[str]:
    record, (low, high) = study["variants"][name], study["intervals"][name]["rouge1"]
    test = study["against_lora"].get(name)
    return [
        name,
        f"{record['rouge1']:.3f} [{low:.3f}, {high:.3f}]",
        f"{test['difference']:+.3f}" if test else "–",
        f"{test['p_value']:.2g}" if test else "–",
        f"{record['trainable_parameters']:,}",
        seconds_cell(record["train_seconds"]),
        f"{record['peak_memory_mib']:,.0f}",
        f"{study['eval_ratio'][name]:.2f}",
    ]


def methods_notes(study: Record) -> list[str]:
    """What stands below the table: how it was measured."""
    base, record = (study["variants"][name] for name in ("base", "lora"))
    seeds = f", means of {len(record['seeds'])} seeds" if "seeds" in record else ""
    return [
        f"{record['n_examples']:,} test dialogues{seeds}; 95 % intervals by bootstrap over dialogues.",
        "− lora: the difference in ROUGE-1, and the p value of its paired test by dialogue.",
        f"Weights: those that train; the base has {base['total_parameters']:,}. MiB: peak memory.",
        f"Scoring: the time of writing the summaries over the base's {base['eval_seconds']:.1f} s; longer "
        "summaries take longer. scripts/benchmarks/generation_time.py compares equal work.",
        f"{record['base_model']} in {record['dtype']} on {record['device']}.",
    ]


def methods_markdown(study: Record) -> str:
    """The table and its notes as Markdown."""
    notes = "\n".join(f"- {note}" for note in methods_notes(study))
    return f"# Methods side by side\n\n{markdown_table(methods_lines(study))}\n\n{notes}\n"


def methods_terminal(study: Record) -> Table:
    """The table for a terminal, without frames, so that 80 columns hold it."""
    return terminal_table(methods_lines(study), methods_notes(study), box=None, padding=(0, 1, 0, 0))
