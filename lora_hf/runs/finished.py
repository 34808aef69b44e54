"""Whether what a command asks for has been done already, without loading data, model or PyTorch.

A run is known by hashes of its data and base model, and taking these means reading both. Here the files that
they come from are compared by size, inode and times instead, as git does; where that cannot decide, the run
itself does.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from lora_hf import __version__
from lora_hf.config import RunConfig
from lora_hf.config.model import ASSETS, EMBEDDED, EMBEDDED_SAMPLE
from lora_hf.distributed import world_size
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, json_text
from lora_hf.run_files import CONFIG, ENDS, INPUTS, PREDICTIONS, RESULTS, ROUGE_NAMES
from lora_hf.run_records import read_record
from lora_hf.runs.run_dir import PROCESSES, SOURCES, RunDirectory

LEFT = "%s: finished before with the same inputs; left as it is"
COMMIT = 40
"""Hexadecimal digits of a full commit on the Hub."""
KEY = "made_from"
"""In a report's JSON: `report_key`."""


def sources_of(config: RunConfig) -> str | None:
    """Return a hash of path, size, inode and times of the files that data and base model come from.

    Returns:
        16 hexadecimal digits, or None where files say nothing: a branch on the Hub may move.
    """
    model, data = config.model, config.data
    places = [
        (model.model_name_or_path, model.revision, ASSETS),
        (data.dataset_name, data.dataset_revision, EMBEDDED_SAMPLE),
    ]
    files: list[Path] = []
    try:
        for name, revision, embedded in places:
            place = embedded if name == EMBEDDED else Path(name).expanduser()
            if place.is_dir():
                files += sorted(file for file in place.iterdir() if file.is_file())
            elif place.is_file():
                files.append(place)
            elif not (revision and len(revision) == COMMIT):
                return None
        stats = [(str(file.resolve()), file.stat()) for file in files]
    except (OSError, RuntimeError):  # loading will say what cannot be read; `~nobody` is a RuntimeError
        return None
    seen = [[path, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for path, s in stats]
    return sha256(json_text(seen).encode()).hexdigest()[:16]


def finished_record(config: RunConfig) -> dict[str, Any] | None:
    """Return the record of a run that has ended with these inputs; None where the run itself has to find out.

    The config must be the recorded one to the letter: another tracker or logging interval changes no result,
    but has not been checked. A run that is pushed when it is done asks the Hub, and is never known here.
    """
    run = RunDirectory(config)
    if config.training.get("push_to_hub") or not (run / RESULTS).is_file():
        return None
    try:
        known = read_record(run / INPUTS) or {}
        is_same = (run / CONFIG).read_text(encoding="utf-8") == run.recorded_config()
        is_same = is_same and known.get(PROCESSES, 1) == world_size()
        is_same = is_same and known.get(SOURCES, "") == sources_of(config)
        record = run.results() if is_same else None
    except (UserError, OSError, ValueError):  # the run will report it
        return None
    return record if record and record.keys() >= {*ROUGE_NAMES} else None


def report_key(
    summary: Mapping[str, Any], folders: Mapping[str, Iterable[Path]], known: Mapping[str, Any]
) -> str:
    """Return the hash of a report's own figures and of what they come from.

    Args:
        summary: what its JSON holds.
        folders: of the runs, whose records and predictions it was made from.
        known: as `write_report` takes it.
    """
    runs = {
        f"{group}/{run.name}": [file_sha256(run / name) for name in (RESULTS, PREDICTIONS)]
        for group, paths in folders.items()
        for run in paths
    }
    figures = {name: value for name, value in summary.items() if name != KEY}
    return sha256(json_text([__version__, figures, runs, known]).encode()).hexdigest()


def current_report(
    stem: Path, folders: Mapping[str, Iterable[Path]], known: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the JSON of a report that is whole and was made from just these runs, or None.

    Args:
        stem: the report's path without the ends of its files.
        folders: of the runs, by group, in the order of the table.
        known: as `write_report` takes it.
    """
    if not all(stem.with_suffix(end).is_file() for end in ENDS):
        return None
    try:
        summary = read_record(stem.with_suffix(".json")) or {}
        return summary if summary.get(KEY) == report_key(summary, folders, known) else None
    except (UserError, OSError):
        return None
