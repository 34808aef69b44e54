"""A plan for the terminal: the memory of a step here and on GPUs, and what would make it fit smaller ones."""

from typing import Any

from rich import box
from rich.table import Table

from lora_hf.config.task import task_of
from lora_hf.errors import counted
from lora_hf.planning.plan import BY_DEFAULT
from lora_hf.reporting.tables import ON_TOP, bytes_cell, terminal_table
from lora_hf.training.compiling import LEAST_STEPS
from lora_hf.training.progress import duration

STORED = {"bfloat16": "bfloat16", "float32": "float32 (T4, V100)", "nf4": "4 bits"}
"""Storage formats of the sizes of FLAN-T5 -> words for them."""


def plan_terminal(record: dict[str, Any], is_verbose: bool = False) -> list[Table | str]:
    """Return the run, a table of the memory that it needs, and notes: at most 15 lines of 80 columns.

    Args:
        record: what `lora_hf.plan` returned.
        is_verbose: show the sizes of FLAN-T5 also where changes are listed that make the run fit.
    """
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
    if is_verbose or len(record.get("ways", ())) < 2:
        lines += _sizes(record)
    lengths = batch["lengths"].partition(";")[0].partition(", because")[0]
    lines.append(
        f"Step: {task.counted(batch['dialogues'])} of up to {batch['source']} tokens, "
        f"{task.targets} of {batch['target']}: {lengths}."
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
    on_top = f" {ON_TOP}" if record["device"] == "cpu" else ""
    lines = [[f"memory of a run{on_top}", "needs", "fits"]]
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
    """Return that the figures of a compiled run are bounds, and whether it is compiled by default."""
    reasons = {record["compiled"], *(way["compiled"] for way in record.get("ways", ()))} - {None}
    if not reasons:
        return []
    note = "Compiled: an upper bound."
    if BY_DEFAULT in reasons:
        note += f" Runs of {LEAST_STEPS:,} steps or more compile on such a GPU."
    return [note]


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


def _sizes(record: dict[str, Any]) -> list[Table | str]:
    """Return the GPU that each size of FLAN-T5 fits, with the run's batch, by storage format."""
    sizes = record.get("sizes", {})
    if not sizes:
        return []
    is_compiled = BY_DEFAULT in [way["compiled"] for way in record.get("ways", ())]
    lines = [["smallest GPU for FLAN-T5", *sizes]]
    for name, label in STORED.items():
        fits = [of[name]["fits_gb"] if name in of else "" for of in sizes.values()]
        cells = ["none" if gb is None else gb and f"{gb} GB" for gb in fits]
        if any(cells):
            label += ", uncompiled" if is_compiled and name == "bfloat16" else ""
            lines.append([label, *cells])
    return [terminal_table(lines, [], box=None, pad_edge=False, padding=(0, 3, 0, 0))]


def _time(record: dict[str, Any]) -> str:
    seconds, steps = record.get("step_seconds"), record["steps"]
    if seconds is None:
        return (
            f"{counted(steps, 'step')}; --measure times three of them."
            if steps
            else "--measure times three steps."
        )
    if steps is None:
        return (
            f"{seconds:.2f} s per step; the number of steps is unknown until the data are available locally."
        )
    return f"{counted(steps, 'step')} of {seconds:.2f} s: {duration(seconds * steps)}, without evaluations."
