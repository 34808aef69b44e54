"""The run directory: what it holds, whose it is, and when it may be used again.

The same command again goes on with an interrupted run and leaves a finished one as it is. With other inputs
it stops and names the fields that changed; `overwrite=true` makes room, and removes only what a run writes.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.document import read_document
from lora_hf.config.file import changed_fields, resolved_yaml
from lora_hf.errors import UserError
from lora_hf.files import write_json, write_text
from lora_hf.layout import CONFIG, INPUTS, OWN, PREDICTIONS, RESULTS

SILENT = (
    "logging_",
    "report_to",
    "run_name",
    "disable_tqdm",
    "save_total_limit",
    "log_level",
    "hub_",
    "push_",
)
"""Fields of `training` that change what is told of a run, not its outcome."""
logger = logging.getLogger(__name__)


def inputs_of(config: RunConfig) -> dict[str, Any]:
    """The fields of one arm's config that its outcome depends on.

    The base arm trains nothing, so that a new learning rate leaves it as it is; a new rank leaves full
    fine-tuning as it is.
    """
    fields = config.model_dump(mode="json", exclude={"output_dir", "overwrite", "arms", "seeds"})
    if config.method != "lora":
        del fields["lora"]
    if config.method == "base":
        del fields["training"], fields["seed"]
        return fields
    fields["training"] = {k: v for k, v in fields["training"].items() if not k.startswith(SILENT)}
    return fields


class RunDirectory:
    """The files of one arm."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output_dir)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def changes(self) -> list[str]:
        """The fields in which the run that is here differs from this one: `lora.r: 8 -> 16`.

        Raises:
            UserError: the directory holds files, and no run.
        """
        if not self.path.exists() or not any(self.path.iterdir()):
            return []
        stored = self / CONFIG
        if not stored.is_file():
            held = sorted(p.name for p in self.path.iterdir())[:5]
            if self.config.overwrite:
                return []
            raise UserError(
                f"output_dir={str(self.path)!r} holds {held} and no run; choose another output_dir, or add "
                "overwrite=true to write beside them"
            )
        try:
            old = RunConfig.model_validate(read_document(stored).data)
        except ValueError as error:
            return [f"{CONFIG} is not readable: {str(error).splitlines()[0]}"]
        return changed_fields(inputs_of(old), inputs_of(self.config))

    def check(self) -> None:
        """Raise a UserError where a run with other inputs is here and `overwrite` is not set."""
        if not self.path.is_dir() and self.path.exists():
            raise UserError(f"output_dir={str(self.path)!r} is a file")
        self._refuse_or_clear(self.changes(), clear=False)

    def claim(self) -> None:
        """Make the directory this run's: keep what equal inputs made, clear what others made."""
        self.check()
        self._refuse_or_clear(self.changes(), clear=True)
        try:
            write_text(self / CONFIG, resolved_yaml(self.config))
        except OSError as error:
            raise UserError(f"output_dir={str(self.path)!r} cannot be written: {error}") from None

    def claim_inputs(self, fingerprints: dict[str, Any]) -> None:
        """The same for what the names in the config stand for: the data's and the base model's hashes."""
        file = self / INPUTS
        if file.is_file():
            old = json.loads(file.read_text(encoding="utf-8"))
            self._refuse_or_clear(changed_fields(old, fingerprints), clear=True)
            write_text(self / CONFIG, resolved_yaml(self.config))
        write_json(file, fingerprints)

    def results(self) -> dict[str, Any] | None:
        """The record of a finished run, or None."""
        return read_record(self / RESULTS)

    def _refuse_or_clear(self, changed: list[str], clear: bool) -> None:
        if changed and not self.config.overwrite:
            raise UserError(
                f"output_dir={str(self.path)!r} holds a run with other inputs ({'; '.join(changed)}); "
                "choose another output_dir, or add overwrite=true to compute it again"
            )
        if changed and clear:
            logger.info("%s: computed again, for %s", self.path, "; ".join(changed))
            for name in OWN:
                target = self / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def read_record(file: Path) -> dict[str, Any] | None:
    """A JSON object from a file, or None where there is no such file."""
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def read_predictions(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's predictions.jsonl: id, dialogue, references, prediction."""
    text = (directory / PREDICTIONS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder; 0 where there is none."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
