"""The run directory: what it holds, whose it is, and when it may be used again.

The same command resumes an interrupted run and leaves a finished one unchanged. With other inputs it stops
and names the fields that changed; `overwrite=true` makes room, and removes only what a run writes.

A finished run is known without loading data, model or PyTorch: hashes of data and base model are compared
only if path, size, inode or times of their files have changed, as git does it (`finished_result`).
"""

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from lora_hf.adapters.config import AUTO
from lora_hf.config import METHOD_CHOICES, RunConfig
from lora_hf.config.load import changed_fields, resolved_yaml
from lora_hf.config.model import ASSETS, EMBEDDED
from lora_hf.config.yaml_reader import read_document
from lora_hf.data.sources import is_on_hub, local_files, unpacked
from lora_hf.distributed import world_size
from lora_hf.errors import UserError, few, first_line, is_windows_path, path_hint
from lora_hf.families import family_of
from lora_hf.files import PARTIAL, file_sha256, file_state, json_text, write_json, write_text
from lora_hf.hub.names import COMMIT
from lora_hf.run_files import CONFIG, INPUTS, OWN, RESULTS
from lora_hf.run_records import RunResult, read_record, read_result

IGNORED = (
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
"""Beginnings of the `training` fields that change what is logged, kept or pushed, but not the outcome."""
BATCH_SIZE, DEFAULT_BATCH_SIZE = "per_device_train_batch_size", 8  # of Seq2SeqTrainingArguments
PROCESSES = "processes"
"""Key in inputs.json: the number of processes that trained the run, if there were several."""
SOURCES = "sources"
"""Key in inputs.json: `sources_of` the config."""
MODEL_SETTINGS = "config and tokenizer of the model"
"""Key in inputs.json: a hash of these files, for a base in a folder; earlier versions did not record it."""
METRICS = "metrics"
"""Key in inputs.json: `metric_hashes` of the config's own metrics, if it names any."""
UNCHANGED = "%s: already finished with the same inputs; unchanged"
logger = logging.getLogger(__name__)


def inputs_of(config: RunConfig, processes: int = 1) -> dict[str, Any]:
    """Return the fields of a run's config that its outcome depends on.

    The base is not trained, so a new learning rate does not change it; a new rank does not change full
    fine-tuning. Only the batch size of all processes together counts: 2 x 4 rows equal 1 x 8.

    Args:
        config: the run's.
        processes: how many train it.
    """
    fields = config.model_dump(
        mode="json", exclude={"output_dir", "overwrite", "arms", "variants", "sweep", "seeds"}
    )
    for method in {*METHOD_CHOICES} - {config.method}:
        fields.pop(method, None)  # the section of the same name, if the method has one
    if config.loraplus_lr_ratio is None:
        del fields["loraplus_lr_ratio"]
    if config.method == "base":
        del fields["training"], fields["seed"], fields["early_stopping_patience"]
        return fields
    fields["training"] = {k: v for k, v in fields["training"].items() if not k.startswith(IGNORED)}
    if processes > 1:
        fields["training"][BATCH_SIZE] = fields["training"].get(BATCH_SIZE, DEFAULT_BATCH_SIZE) * processes
    return fields


def _with_auto(
    old: dict[str, Any], new: dict[str, Any], config: RunConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two runs' inputs, with `auto` in both where one names the default targets of the model.

    A run of before there was `auto` has the names in its config.
    """
    both = [fields["lora"]["target_modules"] for fields in (old, new) if "lora" in fields]
    named = [targets for targets in both if targets != AUTO]
    if len(both) == 2 and len(named) == 1 and isinstance(named[0], list):
        from lora_hf.models.load import model_type

        row = family_of(model_type(config.model))
        if {*row.targets} == {*named[0]} and not row.beside:
            old, new = (
                {**fields, "lora": fields["lora"] | {"target_modules": AUTO}} for fields in (old, new)
            )
    return old, new


def metric_files(config: RunConfig) -> list[str]:
    """Return the Python files that the config names as metrics; scores depend on what is in them."""
    tasks = [config.task, *(section.task for section in config.retention.values())]
    return [name for task in tasks for name in task.metric_files]


def metric_hashes(names: Sequence[str]) -> dict[str, str]:
    """Return a hash of each of the files that is there; scoring reports what is missing."""
    files = {name: Path(name).expanduser() for name in names}
    return {name: file_sha256(file)[:16] for name, file in files.items() if file.is_file()}


def changed_metrics(run: Path, names: Sequence[str]) -> list[str]:
    """Return the metrics whose file is another one than a run recorded; older runs recorded none."""
    known, files = (read_record(run / INPUTS) or {}).get(METRICS) or {}, metric_hashes(names)
    both = [{METRICS: {name: of[name] for name in files if name in known}} for of in (known, files)]
    return changed_fields(*both)


def sources_of(config: RunConfig) -> str | None:
    """Return a hash of path, size, inode and times of the files of the data, base model and own metrics.

    Returns:
        16 hexadecimal digits, or None if files cannot tell: a branch on the Hub may move.
    """
    model, data = config.model, config.data
    is_pinned = len(data.dataset_revision or "") == COMMIT and is_on_hub(data)
    try:
        found = [] if is_pinned else local_files(data)
        if found is None:
            return None
        files = list(found)
        for section in config.retention.values():
            of_task = local_files(unpacked(section.data))
            if of_task is None:
                return None
            files += of_task
        files += [Path(name).expanduser() for name in metric_files(config)]
        place = (
            ASSETS if model.model_name_or_path == EMBEDDED else Path(model.model_name_or_path).expanduser()
        )
        if place.is_dir():
            files += sorted(file for file in place.iterdir() if file.is_file())
        elif not (model.revision and len(model.revision) == COMMIT):
            return None
        states = [file_state(file) for file in files]
    except (
        OSError,
        RuntimeError,
        UserError,
    ):  # loading reports what cannot be read; `~nobody` is a RuntimeError
        return None
    return sha256(json_text(states).encode()).hexdigest()[:16]


def finished_result(config: RunConfig) -> RunResult | None:
    """Return the result of a run that has finished with these inputs; None if only the run itself can tell.

    The config must equal the recorded one to the letter: another tracker or logging interval changes no
    result, but has not been checked. A run that is pushed at the end asks the Hub, and is never known here.
    """
    directory = RunDirectory(config)
    if config.training.get("push_to_hub") or not (directory / RESULTS).is_file():
        return None
    try:
        known = read_record(directory / INPUTS) or {}
        is_same = (directory / CONFIG).read_text(encoding="utf-8") == directory.recorded_config()
        is_same = is_same and known.get(PROCESSES, 1) == world_size()
        is_same = is_same and known.get(SOURCES, "") == sources_of(config)
        result = directory.results() if is_same else None
    except (UserError, OSError, ValueError):  # the run will report it
        return None
    return result if result and result.keys() >= {*config.task.score_names} else None


class RunDirectory:
    """The files of one run."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output_dir)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def check(self) -> None:
        """Check that the directory is free or holds this run.

        Raises:
            UserError: it is a file, holds other things, or a run with another config, and `overwrite` is not
                set; or it cannot be read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output_dir={str(self.path)!r} is a file")
        if is_windows_path(self.config.output_dir) and not self.path.exists():
            raise UserError(
                f"output_dir={self.config.output_dir!r} would be one odd name."
                f"{path_hint(self.config.output_dir)}".removesuffix(".")
            )
        self._refuse(self._changed_config())

    def prepare(self, fingerprints: dict[str, Any], sources: str | None = None) -> None:
        """Take the directory for this run: keep results of equal inputs, clear those of others.

        Called after loading data and model, so that a mistake in their names clears nothing.

        Args:
            fingerprints: hashes of the data and the base model.
            sources: `sources_of` the config, recorded so that the next command need not read these files.

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
                known = fingerprints | several | self._metrics()
                write_json(self / INPUTS, known | ({SOURCES: sources} if sources else {}))
            elif sources and (known := read_record(self / INPUTS) or {}).get(SOURCES) != sources:
                with suppress(OSError):  # a finished run may be where nothing can be written
                    write_json(self / INPUTS, self._metrics() | known | {SOURCES: sources})
        except OSError as error:
            raise UserError(f"output_dir={str(self.path)!r} cannot be written: {error.strerror}") from error

    def recorded_config(self) -> str:
        """Return the text of config.yaml: without `overwrite`, so that repeating the run from it is safe."""
        return resolved_yaml(self.config.model_copy(update={"overwrite": False}))

    def results(self) -> RunResult | None:
        """Return the result of a finished run, or None."""
        return read_result(self.path)

    def _changed_config(self) -> list[str]:
        """Return the fields in which the run found here differs from this one: `lora.r: 8 -> 16`."""
        try:
            names = sorted(p.name for p in self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            raise UserError(f"output_dir={str(self.path)!r} cannot be read: {error.strerror}") from error
        held = [name for name in names if not name.startswith(PARTIAL)]
        if CONFIG not in held:
            self._refuse_other_files(held)
            return []
        try:
            old = RunConfig.model_validate(read_document(self / CONFIG).data)
        except ValueError as error:
            return [f"{CONFIG} is not readable: {first_line(error)}"]
        try:
            before, _ = int((read_record(self / INPUTS) or {}).get(PROCESSES, 1)), self.results()
        except (ValueError, TypeError) as error:
            return [first_line(error)]
        known = _with_auto(inputs_of(old, before), inputs_of(self.config, world_size()), self.config)
        changed = changed_fields(*known) + changed_metrics(self.path, metric_files(self.config))
        several = max(before, world_size()) > 1
        return [
            line.replace(f"{BATCH_SIZE}:", f"{BATCH_SIZE} x processes:") if several else line
            for line in changed
        ]

    def _metrics(self) -> dict[str, Any]:
        return {METRICS: hashes} if (hashes := metric_hashes(metric_files(self.config))) else {}

    def _changed_fingerprints(self, fingerprints: dict[str, Any]) -> list[str]:
        try:
            old = read_record(self / INPUTS)
        except UserError:  # reported by `_changed_config`
            return []
        if old is None:
            return []
        others = (PROCESSES, SOURCES, METRICS, *({MODEL_SETTINGS} - old.keys()))
        both = ({k: known[k] for k in known if k not in others} for known in (old, fingerprints))
        return changed_fields(*both)

    def _refuse_other_files(self, held: list[str]) -> None:
        """Refuse files that are not a run's: `overwrite` allows writing beside them, not replacing them."""
        ours = [name for name in held if name in OWN]
        if ours:
            raise UserError(
                f"output_dir={str(self.path)!r} holds {ours} but no {CONFIG} that says what made them; "
                "choose another output_dir, or move them away"
            )
        if held and not self.config.overwrite:
            if several := [name for name in held if (self / name / CONFIG).is_file()]:
                raise UserError(
                    f"output_dir={str(self.path)!r} holds several runs, each in a folder of its own "
                    f"({few(several)}); choose another output_dir"
                )
            raise UserError(
                f"output_dir={str(self.path)!r} holds {held[:5]} but no run; choose another output_dir, or "
                "add overwrite=true to write beside these files"
            )

    def _refuse(self, changed: list[str]) -> None:
        if changed and not self.config.overwrite:
            raise UserError(
                f"output_dir={str(self.path)!r} holds a run with other inputs ({'; '.join(changed)}); "
                "choose another output_dir, or add overwrite=true to replace it"
            )

    def _clear(self, changed: list[str]) -> None:
        """Remove a run's files, the results first and the config last: a kill leaves no wrong pair."""
        logger.info("%s: replacing the run with other inputs (%s)", self.path, "; ".join(changed))
        for target in [*(self / name for name in reversed(OWN)), *self.path.glob(f"{PARTIAL}*")]:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
