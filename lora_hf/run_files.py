"""Names of a run's files. They are part of the public interface, so they do not change."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

from lora_hf.files import PARTIAL

CONFIG = "config.yaml"
"""The resolved config; `--config` with it repeats the run."""
INPUTS = "inputs.json"
"""Hashes of the data and the base model that the config names."""
ADAPTER = "adapter"
MODEL = "model"
CHECKPOINTS = "checkpoints"
TRAINED = "training.json"
"""Seconds, steps, losses and the Trainer's log; written when training is complete."""
DIVERGED = "diverged.json"
"""Why training could not go on: its numbers were not finite, or its gradients zero."""
PREDICTIONS = "predictions.jsonl"
RETENTION = "retention.jsonl"
"""Outputs on the tasks of `retention`, of the trained model and of its base."""
RESULTS = "results.json"
"""Written last: a run with this file is finished."""

RougeName = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]
ROUGE_NAMES: tuple[RougeName, ...] = get_args(RougeName)
"""Keys of the scores in results.json."""

COMPARISON, VARIANTS, SWEEP, REPORT = "comparison", "methods", "sweep", "report"
"""Reports of several runs, in the folder above theirs, and of one run, in its own; each with `ENDS`."""
TRUNCATION = "truncation"
"""Report of the singular values of an adapter, in the folder of its truncated copies."""
PAGE = ".html"
ENDS = (".json", ".md", PAGE, ".png")
STORE = ".db"
"""Trials of a sweep that searches."""

UNFINISHED = f"{PARTIAL}checkpoints"
"""Folder in which the next checkpoint is written, inside that of the checkpoints."""

OWN = (
    *(CONFIG, INPUTS, ADAPTER, MODEL, CHECKPOINTS, DIVERGED, TRAINED, PREDICTIONS, RETENTION, RESULTS),
    *(REPORT + end for end in ENDS),
)
"""Everything a run writes, in the order of writing."""


def outputs_among(names: Collection[str]) -> set[str]:
    """Return which names of what a folder holds are those of a run, of an evaluation or of a report.

    A file of such a name alone may be anyone's.
    """
    held, ours = {*names}, set[str]()
    if held >= {CONFIG, INPUTS} or held >= {RESULTS, PREDICTIONS}:
        ours |= {*OWN}
    for kind in (COMPARISON, VARIANTS, SWEEP, REPORT, TRUNCATION):
        report = {f"{kind}.json", f"{kind}.md"}
        ours |= report if held >= report else set()
    return held & ours


def split_seed(name: str) -> tuple[str, int | None]:
    """Return the variant and the seed in a run's name; the seed of a variant's first run is None."""
    found = re.fullmatch(r"(.+)-seed-(\d+)", name)
    return (found[1], int(found[2])) if found else (name, None)


def comparison_folder(folder: str | Path) -> str:
    """Return the folder that is proposed for a comparison where a run has `folder`: `runs/talks-compared`."""
    return f"{Path(folder)}-compared"


def merged_folder(folder: str | Path) -> str:
    """Return the folder that is proposed for the merged model of a run or an adapter: `runs/talks-merged`."""
    path = Path(folder)
    return f"{path.parent if path.name == ADAPTER and path.parent.name else path}-merged"


def run_above(folder: Path) -> str:
    """Return `; give the run that it is in, 'DIR'` for a folder inside a run, or an empty text."""
    above = next((part for part in list(folder.parents)[:2] if (part / CONFIG).is_file()), None)
    return f"; give the run that it is in, {str(above)!r}" if above else ""
