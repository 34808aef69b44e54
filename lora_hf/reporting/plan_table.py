"""A plan for the terminal: weights and memory of one run, and of a FLAN-T5 the GPUs that each size fits."""

from typing import Any

from rich.table import Table

from lora_hf.config.task import task_of
from lora_hf.reporting.tables import bytes_cell, terminal_table


def plan_terminal(record: dict[str, Any]) -> list[Table | str]:
    """Return tables with their notes: weights, memory of a step, and of a FLAN-T5's, that of all sizes."""
    return [*_weights(record), *_memory(record), *(_sizes(record) if record["sizes"] else [])]


def _weights(record: dict[str, Any]) -> list[Table | str]:
    counts, weights = record["parameters"], record["bytes"]["weights"]
    total = sum(counts.values())
    lines = [[part, f"{n:,}", bytes_cell(weights[part])] for part, n in counts.items() if n]
    share = record["trainable"] / total
    notes = [f"{record['trainable']:,} of {total:,} train ({share:.2%}){_targets(record['targets'])}."]
    notes += [f"Warning: {warning}." for warning in record["warnings"]]
    notes.append(
        f"On disk: the base {bytes_cell(record['disk']['base'])} as float32, the trained weights "
        f"{bytes_cell(record['disk']['saved'])}, a checkpoint {bytes_cell(record['disk']['a_checkpoint'])}."
    )
    title = f"{record['model']}, {record['method']}, {record['store']}"
    return [title, _table([["weights", "number", "bytes"], *lines]), *notes, ""]


def _targets(targets: list[str] | str) -> str:
    """Return the targets for the end of a sentence; of whole names, the last parts."""
    if isinstance(targets, str):
        return f", on {targets}"
    ends = dict.fromkeys(name.rpartition(".")[2] for name in targets)
    return f", on {', '.join(ends)}" if ends else ""


def _memory(record: dict[str, Any]) -> list[Table | str]:
    held, batch, task = record["bytes"], record["batch"], task_of(record)
    lines = [
        ["weights", bytes_cell(sum(held["weights"].values()))],
        ["gradients", bytes_cell(held["gradients"])],
        ["optimizer (AdamW)", bytes_cell(held["optimizer"])],
        ["activations", _counted(held["activations"])],
        ["most at once", _counted(record["peak_bytes"])],
    ]
    notes = [
        f"A step on {record['device']}: {batch['dialogues']} {task.sources} of {batch['source']} tokens, "
        f"{task.targets} of {batch['target']}: {batch['lengths']}.",
        _time(record),
    ]
    if "not_counted" in record:
        notes.insert(0, f"{record['not_counted']}.".capitalize())
    return [_table([["a training step", "bytes"], *lines]), *notes, ""]


def _counted(size: int | None) -> str:
    return "not counted" if size is None else bytes_cell(size)


def _time(record: dict[str, Any]) -> str:
    seconds, steps = record.get("step_seconds"), record["steps"]
    if seconds is None:
        return f"{steps:,} steps; --measure times three of them." if steps else "--measure times three steps."
    if steps is None:
        return (
            f"{seconds:.2f} s per step; the number of steps is unknown until the data are available locally."
        )
    minutes = seconds * steps / 60
    return f"{steps:,} steps of {seconds:.2f} s: {minutes:,.0f} minutes, without evaluations."


def _sizes(record: dict[str, Any]) -> list[Table | str]:
    stores = list(next(iter(record["sizes"].values())))
    lines = [
        [f"flan-t5-{size}", *(_cell(of[store]) for store in stores)] for size, of in record["sizes"].items()
    ]
    header = ["the same run on a GPU", *stores]
    note = "In parentheses: the smallest GPU of 8, 16, 24, 40 and 80 GB that it fits, with 1 GiB to spare. "
    note += "An upper bound: fused kernels of a GPU hold less than the reference kernels counted here."
    return [_table([header, *lines]), note]


def _table(lines: list[list[str]]) -> Table:
    return terminal_table(lines, [])


def _cell(of: dict[str, Any]) -> str:
    fits = f"{of['fits_gb']} GB" if of["fits_gb"] else "none"
    return f"{bytes_cell(of['peak_bytes'])} ({fits})"
