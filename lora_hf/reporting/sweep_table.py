"""A sweep as a table: a line a run, and below it what is enough."""

from rich.table import Table

from lora_hf.reporting.tables import Record, markdown_table, seconds_cell, terminal_table

HEADER = ["", "ROUGE-1 [95 %]", "loss", "weights", "train", "MiB"]


def sweep_lines(sweep: Record) -> list[list[str]]:
    """A header, then one line a run."""
    return [HEADER, *(_line(sweep, name) for name in sweep["order"])]


def _line(sweep: Record, name: str) -> list[str]:
    record, (low, high) = sweep["variants"][name], sweep["intervals"][name]["rouge1"]
    found = loss_of(record)
    return [
        name + {sweep["best"]: " (best)", sweep["cheapest"]: " (cheapest as good)"}.get(name, ""),
        f"{record['rouge1']:.3f} [{low:.3f}, {high:.3f}]",
        "–" if found is None else f"{found:.3f}",
        f"{record['trainable_parameters']:,}",
        seconds_cell(record["train_seconds"]),
        f"{record['peak_memory_mib']:,.0f}",
    ]


def loss_of(record: Record) -> float | None:
    """The last loss on the validation split, or of training where there is none; the mean over seeds."""
    found = [_last(run.get("log", [])) for run in record.get("runs", [record])]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _last(log: list[Record]) -> float | None:
    for key in ("eval_loss", "loss"):
        if values := [entry[key] for entry in log if key in entry]:
            return float(values[-1])
    return None


def sweep_notes(sweep: Record) -> list[str]:
    """What stands below the table: where more no longer helps, and what is enough."""
    axis, variants = sweep["axis"], sweep["variants"]
    best, cheapest = sweep["best"], sweep["cheapest"]
    share = variants[cheapest]["trainable_parameters"] / max(1, variants[best]["trainable_parameters"])
    record = variants[best]
    seeds = f", means of {len(record['seeds'])} seeds" if "seeds" in record else ""
    return [
        *(
            f"{label or 'all runs'}: from {axis} = {series['plateau']} on no larger value is better; the "
            f"highest score is at {series['best']}."
            for label, series in sweep["series"].items()
        ),
        "Better: ROUGE-1 paired by dialogue, p < 0.05 for all the larger values together.",
        f"Cheapest within the best one's interval: {cheapest}, with {share:.0%} of {best}'s weights.",
        f"{record['n_examples']:,} test dialogues{seeds}; 95 % intervals by bootstrap over dialogues.",
        "Loss: the last on the validation split, or of training where none was asked for.",
        f"{record['base_model']} in {record['dtype']} on {record['device']}.",
    ]


def sweep_markdown(sweep: Record) -> str:
    """The table and its notes as Markdown."""
    notes = "\n".join(f"- {note}" for note in sweep_notes(sweep))
    return f"# Sweep over {sweep['axis']}\n\n{markdown_table(sweep_lines(sweep))}\n\n{notes}\n"


def sweep_terminal(sweep: Record) -> Table:
    """The table for a terminal, without frames, so that 80 columns hold it."""
    return terminal_table(sweep_lines(sweep), sweep_notes(sweep), box=None, padding=(0, 1, 0, 0))
