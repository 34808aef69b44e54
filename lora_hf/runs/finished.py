"""Whether what a command asks for has been done already, without loading data, model or PyTorch.

A run is known by hashes of its data and base model, and taking these means reading both. Here the files that
they come from are compared by size and time of change instead, as make and git do; where that cannot decide,
the run itself does.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from lora_hf import __version__
from lora_hf.config import RunConfig
from lora_hf.config.model import ASSETS, EMBEDDED
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, json_text
from lora_hf.layout import ENDS, INPUTS, PREDICTIONS, RESULTS
from lora_hf.runs.directory import SOURCES, RunDirectory, read_record

LEFT = "%s: finished before with the same inputs; left as it is"
COMMIT = 40
"""Hexadecimal digits of a full commit on the Hub."""
KEY = "made_from"
"""In a report's JSON: the hash of what it was made from."""


def sources_of(config: RunConfig) -> str | None:
    """Return a hash of path, size and time of change of the files that data and base model come from.

    Returns:
        16 hexadecimal digits, or None where files say nothing: a branch on the Hub may move.
    """
    model, data = config.model, config.data
    own = Path(__file__).parents[1] / "data" / "generator"
    places = [
        (model.model_name_or_path, model.revision, ASSETS),
        (data.dataset_name, data.dataset_revision, own),
    ]
    files: list[Path] = []
    for name, revision, embedded in places:
        place = embedded if name == EMBEDDED else Path(name).expanduser()
        if place.is_dir():
            files += sorted(file for file in place.iterdir() if file.is_file())
        elif place.is_file():
            files.append(place)
        elif not (revision and len(revision) == COMMIT):
            return None
    stats = [(str(file.resolve()), file.stat()) for file in files]
    seen = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    return sha256(json_text(seen).encode()).hexdigest()[:16]


def finished_record(config: RunConfig) -> dict[str, Any] | None:
    """Return the record of a run that has ended with these inputs; None where the run itself has to find out.

    A run that is pushed when it is done asks the Hub, and is never known to be finished here.
    """
    run = RunDirectory(config)
    if config.training.get("push_to_hub") or not (run / RESULTS).is_file():
        return None
    try:
        known = (read_record(run / INPUTS) or {}).get(SOURCES)
        is_same = known is not None and not run.changed_config() and known == sources_of(config)
        return run.results() if is_same else None
    except (UserError, OSError):  # the run will report it
        return None


def report_key(folders: Mapping[str, Iterable[Path]], known: Mapping[str, Any]) -> str:
    """Return the hash of what a report is made from: the runs' records and predictions, and the command."""
    runs = {
        f"{group}/{run.name}": [file_sha256(run / name) for name in (RESULTS, PREDICTIONS)]
        for group, paths in folders.items()
        for run in paths
    }
    return sha256(json_text([__version__, list(folders), runs, known]).encode()).hexdigest()


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
        return summary if summary.get(KEY) == report_key(folders, known) else None
    except (UserError, OSError):
        return None
