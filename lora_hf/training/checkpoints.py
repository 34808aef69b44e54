"""The Trainer's checkpoints on disk: written whole, sealed by the hashes of their files, and found again.

A resumed run takes the newest checkpoint that is whole. Newer ones that are not are reported and renamed, so
that the Trainer's rotation does not count them among those to keep.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from lora_hf.errors import NOT_JSON, UserError
from lora_hf.files import file_sha256, folder_sha256, read_object, remove, whole, write_json
from lora_hf.run_files import UNFINISHED

PREFIX = "checkpoint-"
NUMBERED = re.compile(rf"{PREFIX}[0-9]{{1,18}}")
STATE = "trainer_state.json"
RANDOM_STATES = "rng_state"
"""Prefix of the files that hold the random states, one per process."""
MANIFEST = "checkpoint.json"
"""Name of the file with the SHA-256 of all others; it is written last."""
BROKEN = "broken-"
LOSSES = "losses.json"
"""Name of the file with the sum of the losses."""
logger = logging.getLogger(__name__)


def checkpoint_in(folder: Path, step: int) -> Path:
    """Return the place of a step's checkpoint."""
    return folder / f"{PREFIX}{step}"


def whole_checkpoint(place: Path, is_writer: bool) -> AbstractContextManager[Path]:
    """Apply `lora_hf.files.whole` to a checkpoint: each process gets the path to write to, one renames it."""
    beside = place.parent / UNFINISHED / place.name
    return whole(place, beside) if is_writer else nullcontext(beside)


def seal(checkpoint: Path) -> None:
    """Write the manifest: the hashes of the checkpoint's files."""
    write_json(checkpoint / MANIFEST, {"sha256": folder_sha256(checkpoint)})


def defect(checkpoint: Path) -> str | None:
    """Return why a run cannot resume from a checkpoint, or None if it can."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        wrong = [name for name, known in hashes.items() if file_sha256(checkpoint / name) != known]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, *NOT_JSON, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error!r}"
    if not any(name.startswith(RANDOM_STATES) for name in hashes):
        return "it holds no random states (training.save_only_model)"
    return f"{wrong[0]} has changed since it was written" if wrong else None


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole `checkpoint-N` in a folder, or None; log each newer one that is not whole."""
    if folder.is_file():
        raise UserError(f"{folder} is a file, but a run keeps its checkpoints there; move it away")
    for checkpoint in _newest_first(folder):
        if (reason := defect(checkpoint)) is None:
            return checkpoint
        logger.warning("%s is incomplete or damaged and is skipped: %s", checkpoint, reason)
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """Return `last_checkpoint`, and set aside those that it skipped."""
    checkpoint = last_checkpoint(folder)
    set_aside(folder, checkpoint)
    return checkpoint


def set_aside(folder: Path, resumed_from: Path | None) -> None:
    """Rename what `last_checkpoint` skipped, and remove what a kill left half-written."""
    for checkpoint in _newest_first(folder):
        if checkpoint == resumed_from:
            break
        aside = checkpoint.with_name(BROKEN + checkpoint.name)
        remove(aside)
        checkpoint.rename(aside)
    if (unfinished := folder / UNFINISHED).exists():
        names = sorted(path.name for path in unfinished.iterdir())
        logger.warning("removed what a killed run left half-written: %s", ", ".join(names))
        shutil.rmtree(unfinished)


def _newest_first(folder: Path) -> Iterator[Path]:
    found = [c for c in folder.glob(f"{PREFIX}*") if NUMBERED.fullmatch(c.name)]
    return iter(sorted(found, key=lambda c: -int(c.name.removeprefix(PREFIX))))


def is_over(state: TrainerState) -> bool:
    """Return whether training had ended at the checkpoint with this state."""
    waited = _saved(state, "EarlyStoppingCallback")
    patience = waited.get("args", {}).get("early_stopping_patience")
    counted = waited.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return state.global_step >= state.max_steps or (patience is not None and counted >= patience)


def was_interrupted(state: TrainerState) -> bool:
    """Return whether a signal stopped the run during an evaluation, which is still to be made."""
    return bool(_saved(state, "TrainerControl").get("args", {}).get("should_evaluate"))


def keep_loss(checkpoint: Path, total: float) -> None:
    """Write the sum of the losses of all steps so far, so that a resumed run knows their mean."""
    write_json(checkpoint / LOSSES, {"total": total})


def kept_loss(checkpoint: Path) -> float | None:
    """Return what `keep_loss` has written; None in a checkpoint of an older version or of the Trainer's."""
    total = read_object(checkpoint / LOSSES).get("total") if (checkpoint / LOSSES).is_file() else None
    return total if isinstance(total, float) else None


def _saved(state: TrainerState, callback: str) -> dict[str, Any]:
    """Return what a callback of this class has saved in the state."""
    callbacks: Any = state.stateful_callbacks  # a dict after loading, whatever its type says
    saved = callbacks.get(callback) or {}
    return saved[0] if isinstance(saved, list) else saved
