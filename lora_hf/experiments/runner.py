"""Several runs side by side, under one folder: planning and starting them.

Each run is a separate process, started by the command that a user would type, so that time and peak memory
are measured per run. A run that is finished with the same inputs is skipped.
"""

import ctypes
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lora_hf import terminal
from lora_hf.config import RunConfig
from lora_hf.errors import RunFailed, UserError
from lora_hf.evaluation.metrics import Scoring
from lora_hf.experiments.report import KINDS
from lora_hf.files import PARTIAL
from lora_hf.reporting.tables import with_interval
from lora_hf.run_files import DIVERGED, ENDS, STORE, comparison_folder
from lora_hf.run_records import interval_of, read_result, score_of
from lora_hf.runs.run_dir import RunDirectory, finished_result

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class PlannedRun:
    """One run of several."""

    name: str
    """Name of its folder."""
    variant: str
    """With several seeds a variant has several runs."""
    config: RunConfig
    overrides: tuple[str, ...]
    """The fields in which it differs from the common config, as `key=value` of a command line."""


def plan_variant(variant: str, config: RunConfig, changes: Mapping[str, Any]) -> list[PlannedRun]:
    """Plan the runs of one variant: one per seed, `lora`, then `lora-seed-<n>`; without training only one.

    Args:
        variant: its name.
        config: its config, with the changes in it and the folder of all variants as `output_dir`.
        changes: the fields in which it differs from the common config.
    """
    seeds, runs = config.seeds or (config.seed,), []
    for seed in seeds[:1] if config.method == "base" else seeds:
        name = variant if seed == seeds[0] else f"{variant}-seed-{seed}"
        run = config.for_run(config.method, seed, str(Path(config.output_dir) / name))
        overrides = words({**changes, "seed": seed, "output_dir": run.output_dir})
        runs.append(PlannedRun(name, variant, run, tuple(overrides)))
    return runs


def words(changes: Mapping[str, Any]) -> list[str]:
    """Return fields as `key=value` and those of sections as `section.key=value`, with values as JSON."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        is_section = isinstance(value, Mapping)
        flat |= {f"{key}.{sub}": leaf for sub, leaf in value.items()} if is_section else {key: value}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flat.items()]


def run_command(config_file: str | Path, overrides: Sequence[str], run: PlannedRun) -> list[str]:
    """Return the command of one run, without the overrides that the run's own replace."""
    own = {word.partition("=")[0] for word in run.overrides}
    common = [word for word in overrides if word.partition("=")[0] not in own]
    words = ["train", "--config", str(config_file), *common, *run.overrides]
    return [sys.executable, "-m", "lora_hf", *words]


def origin(verb: str, config_file: str | Path, overrides: Sequence[str]) -> dict[str, str]:
    """Return the command that makes all of it again, and the folder that its relative paths start from."""
    command = shlex.join(["lora-hf", verb, "--config", str(config_file), *overrides])
    return {"command": command, "working_directory": str(Path.cwd())}


def run_all(
    config_file: str | Path, overrides: Sequence[str], runs: Sequence[PlannedRun], report: str
) -> list[PlannedRun]:
    """Run what is not finished, one after the other, after checking that all folders are free or theirs.

    A variant whose training diverges is left out, unless the report cannot be without it: with the seeds that
    did not diverge alone it would look better than it is.

    Args:
        config_file, overrides: common to all runs.
        runs: in order.
        report: the name, without its ends, of the files that will be written beside the runs.

    Returns:
        The runs of the variants that are finished.

    Raises:
        UserError: a folder that holds something else, a run with other inputs, a package that is missing, a
            method that does not fit the model, or every run that trains has diverged.
        RunFailed: a run failed; finished ones are kept.
    """
    check_root(runs[0].config, tuple(run.variant for run in runs), report)
    diverged = run_each(config_file, overrides, runs, KINDS[report].needs)
    finished = [run for run in runs if run.variant not in diverged]
    if diverged and all(run.config.method == "base" for run in finished):
        raise UserError(f"all of {', '.join(diverged)} have diverged: lower training.learning_rate")
    return finished


def run_each(
    config_file: str | Path,
    overrides: Sequence[str],
    runs: Sequence[PlannedRun],
    needed: Collection[str] | None = None,
) -> list[str]:
    """`run_all` without checking the folder above the runs.

    Args:
        config_file, overrides, runs: as there.
        needed: variants whose divergence is an error; None stands for all.

    Returns:
        The other variants that have diverged.
    """
    if any(run.config.training.get("push_to_hub") for run in runs):
        raise UserError(
            "training.push_to_hub=true: an experiment has several runs, a repository holds one; remove it, "
            "and push one of the runs afterwards by: lora-hf push --adapter DIR --repo-id USER/NAME"
        )
    finished = {run.name for run in runs if finished_result(run.config) is not None}
    for run in runs:
        if run.config.model.is_quantized and run.name not in finished:
            from lora_hf.models.storage import STORAGE_FORMATS  # here: it imports PyTorch

            STORAGE_FORMATS[run.config.model.storage].check_package()
    for run in runs:
        RunDirectory(run.config).check()
    unfinished = [run.config for run in runs if run.name not in finished]
    if len(unfinished) > 1:  # one alone finds it as early by itself
        from lora_hf.runs.run import check_before_loading  # here: it imports PyTorch

        check_before_loading(unfinished)
    diverged: list[str] = []
    for number, run in enumerate(runs, start=1):
        if run.variant in diverged:  # with another seed
            continue
        if run.name in finished:
            logger.info("[%d/%d] %s: already finished with the same inputs", number, len(runs), run.name)
        else:
            if number > 1:
                terminal.line("")
            logger.info("[%d/%d] %s -> %s", number, len(runs), run.name, run.config.output_dir)
            note = Path(run.config.output_dir) / DIVERGED
            note.unlink(missing_ok=True)  # of an earlier try, which may have had another end
            try:
                run_process(run_command(config_file, overrides, run))
            except RunFailed:
                if needed is None or run.variant in needed or not note.is_file():
                    raise
                logger.warning("%s has diverged: the report leaves %s out", run.name, run.variant)
                diverged.append(run.variant)
        _report_score(run)
    return list(dict.fromkeys(diverged))


def _report_score(run: PlannedRun) -> None:
    """Log the main score of a finished run."""
    if (result := read_result(Path(run.config.output_dir))) is not None:
        main = Scoring.of_result(result).main
        interval = interval_of(result, main.name)
        logger.info(
            "%s: %s %s on %s",
            *(run.name, main.titled, with_interval(main, score_of(result, main.name), interval)),
            run.config.task.counted(result["n_examples"], "test"),
        )


def check_sections(config: RunConfig, verb: str, used: Sequence[str] = ()) -> None:
    """Check that a config lists no runs that an experiment would leave out.

    Args:
        config: the common config.
        verb: the command of the experiment.
        used: which of the sections `variants` and `sweep` it runs.

    Raises:
        UserError: the other section is not empty.
    """
    listed = {
        "variants": (sorted(config.variants), "methods"),
        "sweep": (sorted(config.sweep.space), "sweep"),
    }
    for section, (names, other) in listed.items():
        if names and section not in used:
            field = "sweep.space" if section == "sweep" else section
            raise UserError(
                f"{field}={names}: `lora-hf {verb}` does not run them; use `lora-hf {other}`, "
                f"or remove {section}"
            )


def all_finished(runs: Sequence[PlannedRun]) -> bool:
    """Return whether every run is known to have finished with these inputs."""
    return all(finished_result(run.config) is not None for run in runs)


def check_root(config: RunConfig, variants: tuple[str, ...], report: str) -> None:
    """Check that the folder of several runs holds nothing but these runs, with whichever seeds.

    Args:
        config: of one of the runs.
        variants: beginnings of the runs' names.
        report: the name, without its ends, of the files that are written beside them.

    Raises:
        UserError: it holds something else, and `overwrite` is not set.
    """
    root = Path(config.output_dir).parent
    if root.exists() and not root.is_dir():
        raise UserError(f"output_dir={str(root)!r} is a file")
    found = {p.name for p in root.iterdir()} if root.exists() else set()
    ours = (*variants, report + STORE, PARTIAL)  # of a store also its journal, which a kill leaves
    foreign = sorted(name for name in found - {report + end for end in ENDS} if not name.startswith(ours))
    if foreign and not config.overwrite:
        other = shlex.quote(f"output_dir={comparison_folder(root)}")
        raise UserError(
            f"output_dir={str(root)!r} holds {foreign[:5]} but no comparison; choose another output_dir, "
            f"such as {other}, or add overwrite=true to write beside these files"
        )


def run_process(command: list[str]) -> None:
    """Run a command, forward signals to it, and wait for it.

    The child gets its own process group: a Ctrl-C in the terminal reaches it once, through here. If this
    process is killed, Linux sends the child SIGTERM; elsewhere the next command waits for the run's lock.
    """
    libc = ctypes.CDLL(None)  # not after the fork

    def stop_with_parent() -> None:
        if hasattr(libc, "prctl"):
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    child = subprocess.Popen(
        command,
        process_group=0,
        preexec_fn=stop_with_parent,
        stdout=2,  # standard output has the results of the experiment only
        env=os.environ | terminal.for_runs(),
    )

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    is_main = threading.current_thread() is threading.main_thread()  # Python has handlers there alone
    signals = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, forward) for number in signals}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status != 0:
        if terminal.console.is_interactive:
            terminal.console.show_cursor()  # a killed child leaves it hidden
        raise RunFailed(status)


def left_out(planned: Sequence[PlannedRun], runs: Sequence[PlannedRun]) -> dict[str, list[str]]:
    """Return the entry of a report, `diverged`, on variants that `run_all` has left out; empty if none."""
    kept = {run.variant for run in runs}
    names = list(dict.fromkeys(run.variant for run in planned if run.variant not in kept))
    return {"diverged": names} if names else {}


def folders_of(runs: Sequence[PlannedRun]) -> dict[str, list[Path]]:
    """Return the folders of the runs of each variant."""
    folders: dict[str, list[Path]] = {run.variant: [] for run in runs}
    for run in runs:
        folders[run.variant].append(Path(run.config.output_dir))
    return folders
