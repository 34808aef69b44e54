"""A report of runs that are done: from their folders alone, without loading a model.

Four kinds of folder have one: a comparison's, a study's and a sweep's, which hold a folder a run, and a
run's own.
"""

import json
import logging
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hf.errors import UserError
from lora_hf.experiments.runner import KEY, report_key
from lora_hf.experiments.summary import dialogue_scores, summarize_arms, summarize_variants
from lora_hf.experiments.sweep_summary import summarize_sweep
from lora_hf.files import file_sha256, whole, write_json, write_text
from lora_hf.reporting.charts import Draw
from lora_hf.reporting.comparison_plot import draw_comparison
from lora_hf.reporting.comparison_table import (
    arm_labels,
    comparison_lines,
    comparison_markdown,
    comparison_notes,
)
from lora_hf.reporting.methods_plot import draw_methods
from lora_hf.reporting.methods_table import methods_lines, methods_markdown, methods_notes
from lora_hf.reporting.page import report_page
from lora_hf.reporting.sweep_plot import draw_sweep, sweep_charts
from lora_hf.reporting.sweep_table import sweep_lines, sweep_markdown, sweep_notes
from lora_hf.run_files import ADAPTER, COMPARISON, CONFIG, PAGE, PREDICTIONS, REPORT, RESULTS, SWEEP, VARIANTS
from lora_hf.run_records import read_predictions, read_record

Folders = Mapping[str, Sequence[Path]]
"""By group the folders of its runs: one a seed, the first seed's first."""
Lines = list[list[str]]
_SEED = re.compile(r"-seed-(\d+)$")
WEIGHTS = "adapter_model.safetensors"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """What a report is made of: its files' name, its figures, and how they are told.

    `groups` is the key of the summary that holds the records, `needs` the groups without which there is none.
    """

    stem: str
    title: str
    groups: str
    needs: tuple[str, ...]
    summarize: Callable[..., dict[str, Any]]
    lines: Callable[[Any], Lines]
    notes: Callable[[Any], list[str]]
    markdown: Callable[[Any], str]
    draw: Callable[[Any, Path], None] | None = None
    charts: Callable[[Any], dict[str, Draw]] = lambda summary: {}


_ARMS = (summarize_arms, comparison_lines, comparison_notes, comparison_markdown)
_STUDY = (summarize_variants, methods_lines, methods_notes, methods_markdown)
_SWEEP = (summarize_sweep, sweep_lines, sweep_notes, sweep_markdown)
RUN = Kind(REPORT, "One run", "arms", (), *_ARMS)
COMPARED = Kind(
    COMPARISON, "Base, full fine-tuning and LoRA", "arms", ("base", "full", "lora"), *_ARMS, draw_comparison
)
METHODS = Kind(VARIANTS, "Methods side by side", "variants", ("base", "lora"), *_STUDY, draw_methods)
SWEPT = Kind(SWEEP, "A sweep", "variants", (), *_SWEEP, draw_sweep, sweep_charts)
KINDS = {kind.stem: kind for kind in (COMPARED, METHODS, SWEPT)}
"""Reports of several runs, by the name of their files."""


def report(root: Path) -> list[Path]:
    """Write the report of a folder anew, and return its files.

    Args:
        root: what `train`, `compare`, `methods` or `sweep` wrote into.

    Raises:
        UserError: no finished run is there, or some of the arms are missing.
    """
    if (root / RESULTS).is_file():
        record = read_record(root / RESULTS) or {}
        command = shlex.join(["lora-hf", "train", "--config", str(root / CONFIG)])
        return write_report(RUN, root, {record["method"]: [root]}, {"command": command})
    folders = found_runs(root)
    kind = next((k for k in (METHODS, SWEPT) if (root / f"{k.stem}.json").is_file()), COMPARED)
    old = read_record(root / f"{kind.stem}.json") or {}
    needed = old.get("order") or kind.needs
    if missing := sorted({*needed} - folders.keys()):
        raise UserError(
            f"{str(root)!r} holds runs of {sorted(folders)} and none of {missing}; finish them first"
        )
    known = {"command": old.get("command", "")} | {k: old[k] for k in ("points",) if k in old}
    return write_report(kind, root, {name: folders[name] for name in needed}, known)


def found_runs(root: Path) -> dict[str, list[Path]]:
    """By group the finished runs below a folder.

    Raises:
        UserError: there is none.
    """
    found: dict[str, list[Path]] = {}
    for results in sorted(root.glob(f"*/{RESULTS}"), key=lambda file: _first_seed_first(file.parent.name)):
        found.setdefault(_SEED.sub("", results.parent.name), []).append(results.parent)
    if not found:
        raise UserError(
            f"{str(root)!r} holds no finished run: give the output_dir of a train, compare, methods or "
            "sweep command, or a run's folder in it"
        )
    return found


def _first_seed_first(name: str) -> tuple[str, int]:
    seed = _SEED.search(name)
    return _SEED.sub("", name), int(seed.group(1)) + 1 if seed else 0


def gather(folders: Folders) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """By group, the record and the predictions of each of its runs."""
    for run in (run for runs in folders.values() for run in runs):
        known = (read_record(run / RESULTS) or {}).get("sha256", {}).get(PREDICTIONS)
        if known not in (None, file_sha256(run / PREDICTIONS)):
            logger.warning(
                "%s is not as the run wrote it: `lora-hf verify %s` says more", run / PREDICTIONS, run
            )
    records = {group: [read_record(run / RESULTS) for run in runs] for group, runs in folders.items()}
    return records, {group: [read_predictions(run) for run in runs] for group, runs in folders.items()}


def write_report(kind: Kind, root: Path, folders: Folders, known: Mapping[str, Any]) -> list[Path]:
    """The figures as JSON, the table as Markdown, all of it as a page, and for several runs a picture.

    Args:
        kind: what the runs are.
        root: the folder that the files go to.
        folders: of the runs, by group, in the order of the table.
        known: `command`, that makes all of it again, and what `kind.summarize` takes beside records and rows.
    """
    records, rows = gather(folders)
    more = {name: value for name, value in known.items() if name != "command"}
    summary = kind.summarize(records, rows, **more) | {"command": known["command"]}
    summary = json.loads(json.dumps(summary))  # as it will be read: keys are text, tuples are lists
    summary[KEY] = report_key(summary, folders, known)
    stem = root / kind.stem
    files = [stem.with_suffix(end) for end in (".json", ".md", PAGE)]
    write_json(files[0], summary)
    write_text(files[1], kind.markdown(summary))
    write_text(files[2], report_page(as_report(kind, summary, folders, rows)))
    if kind.draw:
        files.append(stem.with_suffix(".png"))
        with whole(files[-1]) as beside:
            kind.draw(summary, beside)
    return files


def as_report(
    kind: Kind, summary: dict[str, Any], folders: Folders, rows: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """What the page is made of."""
    groups = summary[kind.groups]
    labels = arm_labels(groups) if kind.groups == "arms" else {name: name for name in summary["order"]}
    configs = {name: (runs[0] / CONFIG).read_text(encoding="utf-8") for name, runs in folders.items()}
    return {
        "title": f"{kind.title}: {next(iter(groups.values()))['base_model']}",
        "lead": lead(summary),
        "lines": kind.lines(summary),
        "notes": kind.notes(summary),
        "command": summary["command"],
        "facts": facts(groups, folders),
        "configs": {name: configs[name] for name in labels},
        "charts": kind.charts(summary),
        "labels": labels,
        "records": groups,
        "intervals": summary["intervals"],
        "rows": {name: rows[name][0] for name in labels},
        "scores": {name: dialogue_scores(rows[name]) for name in labels},
    }


def lead(summary: Mapping[str, Any]) -> str:
    """The comparison in a sentence, or nothing where there is nothing to compare."""
    if "gains" not in summary:
        return ""
    arm, share = summary["arms"]["lora"], summary["gains"]["lora_share_of_full"]
    weights = f"LoRA trains {arm['trainable_parameters'] / arm['total_parameters']:.2%} of the weights"
    if share is None:
        return f"{weights}; full fine-tuning gains nothing over the base here."
    return f"{weights} and reaches {share:.0%} of full fine-tuning's gain in ROUGE-1 over the base."


def facts(groups: Mapping[str, Any], folders: Folders) -> dict[str, str]:
    """Versions and hashes: of the data, the base model and what was trained."""
    record = next(iter(groups.values()))
    of_runs = {"data": "data_fingerprint", "base model": "base_fingerprint"}
    found = {name: str(record[key]) for name, key in of_runs.items() if record.get(key)}
    for group, runs in folders.items():
        for run in runs:
            if (weights := run / ADAPTER / WEIGHTS).is_file():
                name = group if run is runs[0] else run.name
                found[f"{name}: {WEIGHTS}, SHA-256"] = file_sha256(weights)
    return found | record["versions"]
