"""Report of several runs, written only if the one in place is out of date."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_hf.experiments.runner import current_report
from lora_hf.run_records import read_record


def report_of(
    stem: str, root: Path, folders: Mapping[str, Sequence[Path]], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the report of runs that are done, if it is not there, and return what its JSON holds.

    Args:
        stem: the name of its files, which says what the runs are.
        root: the folder that they go to.
        folders, known: as `report.write_report` takes them.
    """
    if (summary := current_report(root / stem, folders, known)) is not None:
        return summary
    from lora_hf.experiments.report import KINDS, write_report  # here: it imports Matplotlib and NLTK

    write_report(KINDS[stem], root, folders, known)
    return read_record(root / f"{stem}.json") or {}
