"""Several runs side by side, under one folder: how they are planned, started and gathered.

Each run is a process of its own, started by the command a person would type, so that its time and its peak
memory are its own. A run that is finished with the same inputs is left as it is.
"""

import ctypes
import json
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from lora_hf import __version__
from lora_hf.config import RunConfig
from lora_hf.errors import RunFailed, UserError
from lora_hf.files import PARTIAL, file_sha256, json_text
from lora_hf.run_files import ENDS, PREDICTIONS, RESULTS, STORE
from lora_hf.run_records import read_record
from lora_hf.runs.run_dir import RunDirectory, finished_result

logger = logging.getLogger(__name__)
KEY = "made_from"
"""In a report's JSON: `report_key`."""
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Arm:
    """One run of several.

    Attributes:
        name: of its folder.
        group: what it is a run of; with several seeds a group has several.
        config: the run in full.
        own: the fields in which it differs from the common config, as `key=value` of a command line.
    """

    name: str
    group: str
    config: RunConfig
    own: tuple[str, ...]


def arms_of(group: str, config: RunConfig, changes: Mapping[str, Any]) -> list[Arm]:
    """The runs of one group: once a seed, `lora`, then `lora-seed-<n>`; without training once.

    Args:
        group: its name.
        config: its config, with the changes in it and the folder of all groups as `output_dir`.
        changes: what it lays over the common config.
    """
    seeds, arms = config.seeds or (config.seed,), []
    for seed in seeds[:1] if config.method == "base" else seeds:
        name = group if seed == seeds[0] else f"{group}-seed-{seed}"
        run = config.for_arm(config.method, seed, str(Path(config.output_dir) / name))
        own = words({**changes, "seed": seed, "output_dir": run.output_dir})
        arms.append(Arm(name, group, run, tuple(own)))
    return arms


def words(changes: Mapping[str, Any]) -> list[str]:
    """Fields as `key=value` and those of sections as `section.key=value`, each value as JSON, so as YAML."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        is_section = isinstance(value, Mapping)
        flat |= {f"{key}.{sub}": leaf for sub, leaf in value.items()} if is_section else {key: value}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flat.items()]


def arm_command(config_file: str | Path, overrides: Sequence[str], arm: Arm) -> list[str]:
    """The command that runs one arm by itself."""
    return [sys.executable, "-m", "lora_hf", "train", "--config", str(config_file), *overrides, *arm.own]


def shell(verb: str, config_file: str | Path, overrides: Sequence[str]) -> str:
    """The command that a person would type to have all of it again."""
    return shlex.join(["lora-hf", verb, "--config", str(config_file), *overrides])


def run_arms(config_file: str | Path, overrides: Sequence[str], arms: Sequence[Arm], report: str) -> None:
    """Run what is not yet done, one after the other, once all the folders are seen to be free or theirs.

    Args:
        config_file, overrides: what is common to all.
        arms: in the order in which they run.
        report: the name, without its ends, of the files that will be written beside the runs.

    Raises:
        UserError: a folder that holds something else, a run with other inputs, or a package that is missing.
        RunFailed: a run did not end well; those that did are kept.
    """
    check_root(arms[0].config, tuple(arm.group for arm in arms), report)
    run_each(config_file, overrides, arms)


def run_each(config_file: str | Path, overrides: Sequence[str], arms: Sequence[Arm]) -> None:
    """`run_arms`, where the folder above theirs has been checked."""
    check_alone(arms)
    pending = [arm.config.model for arm in arms if finished_result(arm.config) is None]
    for model in (model for model in pending if model.is_quantized):
        from lora_hf.models.storage import STORAGE_FORMATS  # here: it imports PyTorch

        STORAGE_FORMATS[model.storage].check_package()
    for arm in arms:
        RunDirectory(arm.config).check()
    for number, arm in enumerate(arms, start=1):
        if finished_result(arm.config) is not None:
            logger.info("[%d/%d] %s: finished before with the same inputs", number, len(arms), arm.name)
            continue
        logger.info("[%d/%d] %s -> %s", number, len(arms), arm.name, arm.config.output_dir)
        run_process(arm_command(config_file, overrides, arm))


def all_finished(arms: Sequence[Arm]) -> bool:
    """Return whether every run is known to have ended with these inputs."""
    return all(finished_result(arm.config) is not None for arm in arms)


def report_key(
    summary: Mapping[str, Any], folders: Mapping[str, Iterable[Path]], known: Mapping[str, Any]
) -> str:
    """Return the hash of a report's own figures and of the runs that they come from.

    Args:
        summary: the content of its JSON file.
        folders: of the runs whose results and predictions it was made from.
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
    """Return the JSON of a report that is complete and was made from just these runs, or None.

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


def check_root(config: RunConfig, groups: tuple[str, ...], report: str) -> None:
    """Refuse a folder that holds other things than these runs, and theirs with other seeds.

    Args:
        config: of one of the runs.
        groups: what the runs' names begin with.
        report: the name, without its ends, of the files that are written beside them.

    Raises:
        UserError: it does, and `overwrite` is not set.
    """
    root = Path(config.output_dir).parent
    if root.exists() and not root.is_dir():
        raise UserError(f"output_dir={str(root)!r} is a file")
    found = {p.name for p in root.iterdir()} if root.exists() else set()
    ours = (*groups, report + STORE, PARTIAL)  # of a store also its journal, which a kill leaves
    foreign = sorted(name for name in found - {report + end for end in ENDS} if not name.startswith(ours))
    if foreign and not config.overwrite:
        raise UserError(
            f"output_dir={str(root)!r} holds {foreign[:5]} and no comparison; choose another output_dir, or "
            "add overwrite=true to write beside them"
        )


def check_alone(arms: Sequence[Arm]) -> None:
    """Refuse to push several runs to one repository.

    Raises:
        UserError: `training.push_to_hub` is set.
    """
    if any(arm.config.training.get("push_to_hub") for arm in arms):
        raise UserError(
            "training.push_to_hub=true: a study has several runs, a repository holds one; leave it out, "
            "and push the one that you want by: lora-hf push --adapter DIR --repo-id USER/NAME"
        )


def run_process(command: list[str]) -> None:
    """Run a command, hand it the signals that come, and wait for it.

    The child gets a process group of its own: a Ctrl-C in the terminal reaches it once, through here. If
    this process is killed, the child is told to stop, so that the same command finds nobody at work.
    """
    child = subprocess.Popen(command, process_group=0, preexec_fn=_stop_with_parent)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status != 0:
        raise RunFailed(status)


def _stop_with_parent() -> None:
    """Have the system send SIGTERM when the parent ends; where it cannot, others wait for the run's lock."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def folders_of(arms: Sequence[Arm]) -> dict[str, list[Path]]:
    """By group the folders of its runs."""
    folders: dict[str, list[Path]] = {arm.group: [] for arm in arms}
    for arm in arms:
        folders[arm.group].append(Path(arm.config.output_dir))
    return folders
