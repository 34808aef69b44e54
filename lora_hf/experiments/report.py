"""The report of finished runs: from their folders alone, without loading a model.

Four kinds of folder have one: a comparison's, a study's and a sweep's, which hold one folder per run, and a
single run's.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_hf import __version__
from lora_hf.config import DataConfig
from lora_hf.config.model import EMBEDDED
from lora_hf.config.task import task_of
from lora_hf.config.yaml_reader import read_document
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, json_text, whole, write_json, write_text
from lora_hf.run_files import (
    ADAPTER,
    COMPARISON,
    CONFIG,
    ENDS,
    PAGE,
    PREDICTIONS,
    REPORT,
    RESULTS,
    RETENTION,
    SWEEP,
    VARIANTS,
    run_above,
    split_seed,
)
from lora_hf.run_records import (
    Comparison,
    Prediction,
    RunResult,
    has_recorded_predictions,
    read_predictions,
    read_record,
    read_result,
    read_retention,
    same_order,
    variants_of,
)
from lora_hf.runs.run_dir import changed_metrics

Folders = Mapping[str, Sequence[Path]]
"""The run folders of each variant, one per seed, the first seed's first."""
KEY = "made_from"
"""In a report's JSON: `report_key`."""
WEIGHTS = "adapter_model.safetensors"
if TYPE_CHECKING:
    from lora_hf.evaluation.metrics import Scoring

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of report: its title, and the variants that it cannot be without."""

    title: str = ""
    """Empty where the results name it."""
    needs: tuple[str, ...] = ()


KINDS = {
    COMPARISON: Kind("Base, full fine-tuning and LoRA", ("base", "full", "lora")),
    VARIANTS: Kind("Methods side by side", ("base", "lora")),
    SWEEP: Kind(),
    REPORT: Kind(),
}
"""By the name of its files."""


def report(root: Path) -> list[Path]:
    """Write the report of a folder again, and return its files.

    Args:
        root: the `output_dir` of `train`, `compare`, `methods` or `sweep`.

    Raises:
        UserError: no finished run is there, or some of the runs are missing.
    """
    if (result := read_result(root)) is not None:
        start = working_directory(root)
        file = (root / CONFIG).resolve()
        config = file.relative_to(start) if file.is_relative_to(start) else file
        command = shlex.join(["lora-hf", "train", "--config", str(config)])
        known = {"command": command, "working_directory": str(start)}
        return _write(REPORT, root, {result["method"]: [root]}, known)[1]
    folders = found_runs(root)
    kind = next((kind for kind in (VARIANTS, SWEEP) if (root / f"{kind}.json").is_file()), COMPARISON)
    old = read_record(root / f"{kind}.json") or {}
    needed = old.get("order") or KINDS[kind].needs
    if missing := sorted({*needed} - folders.keys()):
        raise UserError(
            f"{str(root)!r} holds runs of {sorted(folders)} but none of {missing}; finish them first"
        )
    known = {
        "command": old.get("command", ""),
        "working_directory": str(working_directory(folders[needed[0]][0])),
    } | {key: old[key] for key in ("working_directory", "points", "published", "diverged") if key in old}
    return _write(kind, root, {name: folders[name] for name in needed}, known)[1]


def working_directory(run: Path) -> Path:
    """Return the folder that the relative paths in a run's config start from: that of its command.

    It is found by the run's own `output_dir`. A folder that was moved, or an absolute `output_dir`, does not
    say it; then it is the current one.
    """
    given = read_document(run / CONFIG).data.get("output_dir") or ""
    place, parts = run.resolve(), Path(given).parts
    is_below = 0 < len(parts) < len(place.parts) and place.parts[-len(parts) :] == parts
    return Path(*place.parts[: -len(parts)]) if is_below else Path.cwd()


def found_runs(root: Path) -> dict[str, list[Path]]:
    """Find the finished runs below a folder, by variant.

    Raises:
        UserError: there is none.
    """

    def first_seed_first(file: Path) -> tuple[str, int]:
        variant, seed = split_seed(file.parent.name)
        return variant, 0 if seed is None else seed + 1

    found: dict[str, list[Path]] = {}
    for results in sorted(root.glob(f"*/{RESULTS}"), key=first_seed_first):
        found.setdefault(split_seed(results.parent.name)[0], []).append(results.parent)
    if not found:
        below = sorted({str(results.parents[1]) for results in root.glob(f"*/*/{RESULTS}")})
        near = f", such as {' or '.join(map(repr, below[:3]))}" if below else run_above(root)
        raise UserError(
            f"{str(root)!r} holds no finished run: give the output_dir of a train, compare, methods or "
            f"sweep command, or a run's folder in it{near}"
        )
    return found


def write_report(kind: str, root: Path, folders: Folders, known: Mapping[str, Any]) -> Comparison:
    """Write the report of several runs, unless the one in place was made from just these; return its JSON.

    Args:
        kind: a key of `KINDS`.
        root: the folder that the files go to.
        folders: the runs, in the order of the table.
        known: `command`, which makes all of it again in `working_directory`; of a sweep `points`; of a
            reproduction `published`.
    """
    files = [root / f"{kind}{end}" for end in ENDS]
    with suppress(UserError, OSError):  # an unreadable report is written again
        if all(file.is_file() for file in files):
            current = cast(Comparison, read_record(files[0]) or {})
            if current.get(KEY) == report_key(current, folders, known):
                return current
    return _write(kind, root, folders, known)[0]


def report_key(comparison: Comparison, folders: Folders, known: Mapping[str, Any]) -> str:
    """Return the hash of a report's figures and of the runs that they come from."""
    runs = {
        f"{variant}/{run.name}": [
            file_sha256(run / name) for name in (RESULTS, PREDICTIONS, RETENTION) if (run / name).is_file()
        ]
        for variant, paths in folders.items()
        for run in paths
    }
    figures = {name: value for name, value in comparison.items() if name != KEY}
    return sha256(json_text([__version__, figures, runs, known]).encode()).hexdigest()


def _read(
    folders: Folders, scoring: "Scoring"
) -> tuple[dict[str, list[RunResult]], dict[str, list[Any]], dict[str, list[Any]]]:
    """Return the results, the predictions in one order and their scores, by variant, one for each seed.

    Raises:
        UserError: a run was scored with another version of a metric's file.
    """
    from lora_hf.evaluation.predictions import kept_scores, measure_rows  # here: NLTK takes a second

    results: dict[str, list[RunResult]] = {name: [] for name in folders}
    rows: dict[str, list[Any]] = {name: [] for name in folders}
    scores: dict[str, list[Any]] = {name: [] for name in folders}
    first: list[Prediction] = []
    for name, run in ((name, run) for name, runs in folders.items() for run in runs):
        result = read_result(run) or {}
        predictions = read_predictions(run, result)
        if changed := changed_metrics(run, scoring.task.metric_files):
            raise UserError(
                f"{run} was scored with another version of a metric's file ({'; '.join(changed)}); put the "
                "file back, or add overwrite=true to the command that made the run"
            )
        first = first or predictions
        predictions = same_order(run, predictions, first)
        is_changed = PREDICTIONS in result.get("sha256", {}) and not has_recorded_predictions(run, result)
        if is_changed:
            logger.warning(
                "%s was changed after the run; scoring it again. `lora-hf verify %s` says more",
                run / PREDICTIONS,
                run,
            )
        results[name].append(result)
        rows[name].append(predictions)
        measure = measure_rows if is_changed else kept_scores
        scores[name].append(measure(predictions, scoring))
    return results, rows, scores


def _write(
    kind: str, root: Path, folders: Folders, known: Mapping[str, Any]
) -> tuple[Comparison, list[Path]]:
    """Write the figures as JSON, the table as Markdown, the page, and a picture of several runs."""
    from lora_hf.evaluation.metrics import Scoring  # here: it takes seconds to import
    from lora_hf.evaluation.retention_scores import mean_pair, retention_scores, scorings_of
    from lora_hf.experiments.summary import mean_scores, summarize
    from lora_hf.reporting.comparison_table import (
        best_places,
        comparison_lines,
        comparison_markdown,
        comparison_notes,
        variant_labels,
    )
    from lora_hf.reporting.figures import Report, draw_picture
    from lora_hf.reporting.page import report_page
    from lora_hf.reporting.verdict import verdict

    scoring = Scoring.of_result(read_result(next(iter(folders.values()))[0]) or {})
    results, rows, scores = _read(folders, scoring)
    by_example = {name: mean_scores(of) for name, of in scores.items()}
    further = scorings_of(results[next(iter(folders))][0])
    kept = {
        name: [retention_scores(read_retention(run), further) for run in runs]
        for name, runs in folders.items()
        if further
    }
    retention = {
        name: {task: mean_pair([of[task] for of in runs]) for task in further} for name, runs in kept.items()
    }
    comparison = summarize(kind, results, rows, by_example, known.get("points"), scoring, retention, further)
    if "published" in known:
        comparison["published"] = known["published"]
    if known.get("diverged"):
        comparison["diverged"] = known["diverged"]
    comparison["command"] = known["command"]
    comparison["working_directory"] = known["working_directory"]
    warned = [line for of in results.values() for result in of for line in result.get("data_warnings", [])]
    if warned:
        comparison["data_warnings"] = list(dict.fromkeys(warned))
    comparison["made_from"] = report_key(comparison, folders, known)

    variants = variants_of(comparison)
    labels = variant_labels(variants) if "arms" in comparison else {n: n for n in comparison["order"]}
    one = f"Sweep over {comparison['axis']}" if kind == SWEEP else next(iter(labels.values()))
    title = f"{KINDS[kind].title or one}: {subject(comparison, folders)}"
    found, rests_on = verdict(comparison), basis(comparison, folders, root)
    page = report_page(
        Report(
            title=title,
            verdict=found,
            basis=rests_on,
            lines=comparison_lines(comparison),
            best=best_places(comparison),
            notes=comparison_notes(comparison),
            facts=facts(variants, folders),
            configs={name: (folders[name][0] / CONFIG).read_text(encoding="utf-8") for name in labels},
            comparison=comparison,
            labels=labels,
            rows={name: rows[name][0] for name in labels},
            scoring=scoring,
            by_example={name: by_example[name][scoring.main.name].by_example() for name in labels},
        )
    )
    files = [root / f"{kind}{end}" for end in (".json", ".md", PAGE)]
    write_json(files[0], comparison)
    opening = [*found, *(f"{name}: {value}" for name, value in rests_on.items() if name != "command")]
    write_text(files[1], comparison_markdown(comparison, title, opening))
    write_text(files[2], page)
    if kind != REPORT:
        files.append(root / f"{kind}.png")
        with whole(files[-1]) as beside:
            draw_picture(comparison, beside)
    return comparison, files


def subject(comparison: Comparison, folders: Folders) -> str:
    """Return model, task and data for a title: `embedded, translation (data: talks.csv)`.

    Paths that cannot be names on the Hub are shortened to the name of the file; the page has them below.
    """
    first = next(iter(variants_of(comparison).values()))
    task = task_of(first).title
    model, data = (
        Path(name).name if name.startswith(("/", "~", ".")) else name
        for name in (first["base_model"], dataset_of(folders))
    )
    return f"{model}, {task[0].lower()}{task[1:]} (data: {data})"


def dataset_of(folders: Folders) -> str:
    """Return `data.dataset_name` of the runs."""
    config = read_document(next(iter(folders.values()))[0] / CONFIG).data
    return (config.get("data") or {}).get("dataset_name") or DataConfig().dataset_name


def basis(comparison: Comparison, folders: Folders, root: Path) -> dict[str, str]:
    """Return what a verdict rests on: data, model, seeds, date, folder and command."""
    first = next(iter(variants_of(comparison).values()))
    task = task_of(first)
    runs, dataset = [run for of in folders.values() for run in of], dataset_of(folders)
    test = first.get("splits", {}).get("test")
    seeds = next((result["seeds"] for result in variants_of(comparison).values() if "seeds" in result), None)
    last = max((run / RESULTS).stat().st_mtime for run in runs)
    model = "embedded, a toy," if first["base_model"] == EMBEDDED else first["base_model"]
    found = {
        "data": f"{dataset}, {task.counted(first['n_examples'], 'test')}" + (f" ({test})" if test else ""),
        "model": f"{model} in {first['dtype']} on {first['device']}",
        "seeds" if seeds else "seed": ", ".join(map(str, seeds or [first["seed"]])),
        "finished": datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d"),
        "folder": str(root),
    }
    if comparison["command"]:  # its paths may be relative
        start = shlex.quote(comparison["working_directory"])
        found["command"] = f"cd {start} && {comparison['command']}"
    return found


def facts(variants: Mapping[str, RunResult], folders: Folders) -> dict[str, str]:
    """Return versions and hashes: of the data, the base model and the trained weights."""
    first = next(iter(variants.values()))
    found = {}
    if data := first.get("data_fingerprint"):
        found["data"] = data
    if base := first.get("base_fingerprint"):
        found["base model"] = base
    for name, runs in folders.items():
        for run in runs:
            if (weights := run / ADAPTER / WEIGHTS).is_file():
                label = name if run is runs[0] else run.name
                found[f"{label}: {WEIGHTS}, SHA-256"] = file_sha256(weights)
    return found | first["versions"]
