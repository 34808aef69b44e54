"""The Trainer's checkpoints on disk: written whole, sealed by the hashes of their files, and found again.

A run that goes on takes the newest that is whole. One that is not is told of and moved aside, so that the
Trainer's rotation does not count it among those that are kept.
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
from lora_hf.files import file_sha256, folder_sha256, remove, whole, write_json
from lora_hf.run_files import UNFINISHED

PREFIX = "checkpoint-"
NUMBERED = re.compile(rf"{PREFIX}[0-9]{{1,18}}")
STATE = "trainer_state.json"
RANDOM_STATES = "rng_state"
"""What the names of their files begin with: one a process."""
MANIFEST = "checkpoint.json"
"""Written last: SHA-256 by file."""
BROKEN = "broken-"
logger = logging.getLogger(__name__)


def checkpoint_in(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"{PREFIX}{step}"


def whole_checkpoint(place: Path, is_writer: bool) -> AbstractContextManager[Path]:
    """`lora_hf.files.whole` of a checkpoint: the path to write it at, in each process; one renames it."""
    beside = place.parent / UNFINISHED / place.name
    return whole(place, beside) if is_writer else nullcontext(beside)


def seal(checkpoint: Path) -> None:
    """Write down what the checkpoint holds."""
    write_json(checkpoint / MANIFEST, {"sha256": folder_sha256(checkpoint)})


def flaw(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole, or None."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        wrong = [name for name, known in hashes.items() if file_sha256(checkpoint / name) != known]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, *NOT_JSON, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} does not fit it: {error!r}"
    if not any(name.startswith(RANDOM_STATES) for name in hashes):
        return "it holds no random states (training.save_only_model)"
    return f"{wrong[0]} is not as it was written" if wrong else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole `checkpoint-N` in a folder, or None; each newer one that is not is told of."""
    if folder.is_file():
        raise UserError(f"{folder} is a file, and a run keeps its checkpoints there; move it away")
    for checkpoint in _newest_first(folder):
        if (reason := flaw(checkpoint)) is None:
            return checkpoint
        logger.warning("%s is not whole and passed over: %s", checkpoint, reason)
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """`last_checkpoint`, and what it passes over out of the way."""
    checkpoint = last_checkpoint(folder)
    set_aside(folder, checkpoint)
    return checkpoint


def set_aside(folder: Path, going_on_from: Path | None) -> None:
    """Move what `last_checkpoint` passed over out of the way, and remove what a kill left half-written."""
    for checkpoint in _newest_first(folder):
        if checkpoint == going_on_from:
            break
        aside = checkpoint.with_name(BROKEN + checkpoint.name)
        remove(aside)
        checkpoint.rename(aside)
    if (unfinished := folder / UNFINISHED).exists():
        names = sorted(path.name for path in unfinished.iterdir())
        logger.warning("half-written when the run ended, passed over and removed: %s", ", ".join(names))
        shutil.rmtree(unfinished)


def _newest_first(folder: Path) -> Iterator[Path]:
    found = [c for c in folder.glob(f"{PREFIX}*") if NUMBERED.fullmatch(c.name)]
    return iter(sorted(found, key=lambda c: -int(c.name.removeprefix(PREFIX))))


def is_over(state: TrainerState) -> bool:
    """Whether training had ended with the checkpoint that this is the state of."""
    waited = _saved(state, "EarlyStoppingCallback")
    patience = waited.get("args", {}).get("early_stopping_patience")
    counted = waited.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return state.global_step >= state.max_steps or (patience is not None and counted >= patience)


def was_cut_short(state: TrainerState) -> bool:
    """Whether the run was told to stop while it evaluated: the evaluation is still asked for."""
    return bool(_saved(state, "TrainerControl").get("args", {}).get("should_evaluate"))


def _saved(state: TrainerState, callback: str) -> dict[str, Any]:
    """What a callback of this class has left in the state."""
    callbacks: Any = state.stateful_callbacks  # a dict by now, whatever its type says
    saved = callbacks.get(callback) or {}
    return saved[0] if isinstance(saved, list) else saved
