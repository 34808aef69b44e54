"""A plan for the terminal: the memory of a step here and on GPUs, and what would make it fit smaller ones."""

from typing import Any

from rich import box
from rich.table import Table

from lora_hf.config.task import task_of
from lora_hf.planning.plan import BY_DEFAULT
from lora_hf.reporting.tables import bytes_cell, terminal_table
from lora_hf.training.compiling import LEAST_STEPS

STORED = {"bfloat16": "in bfloat16", "float32": "in float32 (T4, V100)", "nf4": "in 4 bits"}
"""Storage formats of the sizes of FLAN-T5 -> words for them."""


def plan_terminal(record: dict[str, Any]) -> list[Table | str]:
    """Return the run, a table of the memory that it needs, and notes: about 20 lines of 80 columns."""
    total, train = sum(record["parameters"].values()), record["trainable"]
    batch, task, disk = record["batch"], task_of(record), record["disk"]
    lines: list[Table | str] = [
        f"{record['model']}, {record['method']}: {train:,} of {total:,} train "
        f"({train / total:.2%}){_targets(record['targets'])}."
    ]
    lines += [f"Warning: {warning}." for warning in record["warnings"]]
    lines.append(_table(record))
    lines += _compiled(record)
    if "not_counted" in record:
        lines.append(f"{record['not_counted']}.".capitalize())
    lines += _sizes(record)
    lines.append(
        f"A step has {batch['dialogues']} {task.sources} of at most {batch['source']} tokens, "
        f"{task.targets} of {batch['target']}: {batch['lengths'].partition(';')[0]}."
    )
    lines.append(_time(record))
    lines.append(
        f"Disk: base {bytes_cell(disk['base'])}, trained weights {bytes_cell(disk['saved'])}, "
        f"each checkpoint {bytes_cell(disk['a_checkpoint'])}."
    )
    return lines


def _targets(targets: list[str] | str) -> str:
    """Return the targets for the end of a sentence; of whole names, the last parts."""
    if isinstance(targets, str):
        return f", on {targets}"
    ends = dict.fromkeys(name.rpartition(".")[2] for name in targets)
    return f", on {', '.join(ends)}" if ends else ""


def _table(record: dict[str, Any]) -> Table:
    lines = [["memory of a run", "needs", "fits"]]
    lines.append([f"on this machine: {record['device']}, {_how(record)}", *_here(record)])
    for number, way in enumerate(record.get("ways", ())):
        label = "\n".join(f"  {override}" for override in way["overrides"])
        if number and len(way["overrides"]) > 2:
            label = "  all of these"
        fits = f"{way['fits_gb']} GB GPU" if way["fits_gb"] else "no GPU of 80 GB"
        lines.append([label or f"on a GPU: {_how(way)}", bytes_cell(_largest(way)), fits])
    return terminal_table(lines, [], box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def _how(record: dict[str, Any]) -> str:
    return f"{record['store']}, compiled" if record["compiled"] else str(record["store"])


def _compiled(record: dict[str, Any]) -> list[str]:
    """Return what the figures of a compiled run are, and whether it is compiled without asking for it."""
    reasons = {record["compiled"], *(way["compiled"] for way in record.get("ways", ()))} - {None}
    if not reasons:
        return []
    lines = ["Compiled: an upper bound, because what uncompiled blocks keep is counted."]
    if BY_DEFAULT in reasons:
        lines.append(f"Runs of {LEAST_STEPS:,} steps or more are compiled by default on such a GPU.")
    return lines


def _largest(record: dict[str, Any]) -> int:
    """Return the bytes of a training step, or of scoring where that needs more."""
    return max(record["peak_bytes"], record.get("scoring_bytes") or 0)


def _here(record: dict[str, Any]) -> list[str]:
    if record["peak_bytes"] is None:
        return ["not counted", "unknown"]
    needed, free = _largest(record), record.get("free_bytes")
    if free is None:
        return [bytes_cell(needed), "unknown"]
    return [bytes_cell(needed), f"{'yes' if needed <= free else 'no'}, {bytes_cell(free)} free"]


def _sizes(record: dict[str, Any]) -> list[str]:
    """Return the GPU that each size of FLAN-T5 fits, with the run's batch, by storage format."""
    lines, sizes = [], record.get("sizes", {})
    is_compiled = BY_DEFAULT in [way["compiled"] for way in record.get("ways", ())]
    uncompiled = ", uncompiled" if is_compiled else ""
    for name, label in STORED.items():
        fits: dict[int | None, list[str]] = {}
        for size, of in sizes.items():
            if name in of:
                fits.setdefault(of[name]["fits_gb"], []).append(size)
        if fits:
            parts = [f"{', '.join(names)} {f'{gb} GB' if gb else 'none'}" for gb, names in fits.items()]
            label += uncompiled if name == "bfloat16" else ""
            lines.append(f"FLAN-T5 {label}: {'; '.join(parts)}.")
    return lines


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
