"""The run directory: what it holds, whose it is, and when it may be used again.

The same command again goes on with an interrupted run and leaves a finished one as it is. With other inputs
it stops and names the fields that changed; `overwrite=true` makes room, and removes only what a run writes.
"""

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_hf.config import METHOD_CHOICES, RunConfig
from lora_hf.config.load import changed_fields, resolved_yaml
from lora_hf.config.yaml_reader import read_document
from lora_hf.distributed import world_size
from lora_hf.errors import UserError, first_line
from lora_hf.files import PARTIAL, write_json, write_text
from lora_hf.run_files import CONFIG, INPUTS, OWN, RESULTS
from lora_hf.run_records import read_record

SILENT = (
    "logging_",
    "report_to",
    "run_name",
    "disable_tqdm",
    "save_total_limit",
    "log_level",
    "auto_find_batch_size",
    "hub_",
    "push_",
)
"""Fields of `training` that change what is told of a run, or whether it comes to its end, not its outcome."""
ROWS, DEFAULT_ROWS = "per_device_train_batch_size", 8  # as Seq2SeqTrainingArguments has it
PROCESSES = "processes"
"""In the record of inputs: how many trained it, where several did."""
SOURCES = "sources"
"""In the record of inputs: `finished.sources_of`."""
logger = logging.getLogger(__name__)


def inputs_of(config: RunConfig, world: int = 1) -> dict[str, Any]:
    """The fields of one arm's config that its outcome depends on.

    The base arm trains nothing, so that a new learning rate leaves it as it is; a new rank leaves full
    fine-tuning as it is. Of several processes' batches only the sum counts: 2 of 4 rows are as 1 of 8.

    Args:
        config: the arm's.
        world: the number of processes that train it.
    """
    fields = config.model_dump(
        mode="json", exclude={"output_dir", "overwrite", "arms", "variants", "sweep", "seeds"}
    )
    for method in {*METHOD_CHOICES} - {config.method}:
        fields.pop(method, None)  # the section of the same name, where it has one
    if config.loraplus_lr_ratio is None:
        del fields["loraplus_lr_ratio"]
    if config.method == "base":
        del fields["training"], fields["seed"], fields["early_stopping_patience"]
        return fields
    fields["training"] = {k: v for k, v in fields["training"].items() if not k.startswith(SILENT)}
    if world > 1:
        fields["training"][ROWS] = fields["training"].get(ROWS, DEFAULT_ROWS) * world
    return fields


class RunDirectory:
    """The files of one arm."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output_dir)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def check(self) -> None:
        """See that the directory is free, or holds this run.

        Raises:
            UserError: it is a file, holds other things, or a run with another config, and `overwrite` is not
                set; or it cannot be read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output_dir={str(self.path)!r} is a file")
        self._refuse(self._changed_config())

    def claim(self, fingerprints: dict[str, Any], sources: str | None = None) -> None:
        """Make the directory this run's: keep what equal inputs made, clear what others made.

        Called once data and model are loaded, so that a mistake in their names clears nothing.

        Args:
            fingerprints: hashes of what names in the config stand for, the data and the base model.
            sources: what stands for the files these come from (`finished.sources_of`), recorded so that the
                same command again need not read them; None where files say nothing.

        Raises:
            UserError: as `check`, for the config and the fingerprints; or the directory cannot be written.
        """
        changed = self._changed_config() + self._changed_fingerprints(fingerprints)
        self._refuse(changed)
        try:
            if changed:
                self._clear(changed)
            if self.results() is None:
                write_text(self / CONFIG, self.recorded_config())
                several = {PROCESSES: world_size()} if world_size() > 1 else {}
                write_json(self / INPUTS, fingerprints | several | ({SOURCES: sources} if sources else {}))
            elif sources and (known := read_record(self / INPUTS) or {}).get(SOURCES) != sources:
                with suppress(OSError):  # a finished run may be where nothing can be written
                    write_json(self / INPUTS, known | {SOURCES: sources})
        except OSError as error:
            raise UserError(f"output_dir={str(self.path)!r} cannot be written: {error.strerror}") from error

    def recorded_config(self) -> str:
        """Return the text of config.yaml: without `overwrite`, so that repeating the run from it is safe."""
        return resolved_yaml(self.config.model_copy(update={"overwrite": False}))

    def results(self) -> dict[str, Any] | None:
        """The record of a finished run, or None."""
        return read_record(self / RESULTS)

    def _changed_config(self) -> list[str]:
        """The fields in which the run that is here differs from this one: `lora.r: 8 -> 16`."""
        held = self._held()
        if CONFIG not in held:
            self._refuse_strangers(held)
            return []
        try:
            old = RunConfig.model_validate(read_document(self / CONFIG).data)
        except ValueError as error:
            return [f"{CONFIG} is not readable: {str(error).splitlines()[0]}"]
        try:
            before, _ = int((read_record(self / INPUTS) or {}).get(PROCESSES, 1)), self.results()
        except (ValueError, TypeError) as error:
            return [first_line(error)]
        changed = changed_fields(inputs_of(old, before), inputs_of(self.config, world_size()))
        several = max(before, world_size()) > 1
        return [line.replace(f"{ROWS}:", f"{ROWS} x processes:") if several else line for line in changed]

    def _held(self) -> list[str]:
        try:
            names = sorted(p.name for p in self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            raise UserError(f"output_dir={str(self.path)!r} cannot be read: {error.strerror}") from error
        return [name for name in names if not name.startswith(PARTIAL)]

    def _changed_fingerprints(self, fingerprints: dict[str, Any]) -> list[str]:
        try:
            old = read_record(self / INPUTS)
        except UserError:  # told by `_changed_config`
            return []
        if old is None:
            return []
        return changed_fields({k: old[k] for k in old if k not in (PROCESSES, SOURCES)}, fingerprints)

    def _refuse_strangers(self, held: list[str]) -> None:
        """Files of somebody else: `overwrite` allows to write beside them, never in their place."""
        ours = [name for name in held if name in OWN]
        if ours:
            raise UserError(
                f"output_dir={str(self.path)!r} holds {ours} and no {CONFIG} that says what made them; "
                "choose another output_dir, or move them away"
            )
        if held and not self.config.overwrite:
            raise UserError(
                f"output_dir={str(self.path)!r} holds {held[:5]} and no run; choose another output_dir, or "
                "add overwrite=true to write beside them"
            )

    def _refuse(self, changed: list[str]) -> None:
        if changed and not self.config.overwrite:
            raise UserError(
                f"output_dir={str(self.path)!r} holds a run with other inputs ({'; '.join(changed)}); "
                "choose another output_dir, or add overwrite=true to compute it again"
            )

    def _clear(self, changed: list[str]) -> None:
        """Remove what a run writes: the results first and the config last, so that a kill leaves no lie."""
        logger.info("%s: computed again, for %s", self.path, "; ".join(changed))
        for target in [*(self / name for name in reversed(OWN)), *self.path.glob(f"{PARTIAL}*")]:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
