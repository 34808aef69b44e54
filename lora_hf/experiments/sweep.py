"""A sweep: the same run over a grid of values, or where a search looks."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.sweep import Point, changes_of, choices, grid
from lora_hf.config.variants import with_grid, with_variant
from lora_hf.errors import UserError
from lora_hf.experiments.report import write_report
from lora_hf.experiments.runner import (
    PlannedRun,
    all_finished,
    check_root,
    check_sections,
    folders_of,
    left_out,
    origin,
    plan_variant,
    run_all,
    run_each,
)
from lora_hf.run_files import SWEEP
from lora_hf.run_records import Comparison
from lora_hf.runs.lock import run_lock
from lora_hf.runs.run_dir import RunDirectory
from lora_hf.runs.start import report_unread

BASE = "base"


def sweep(config_file: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Run each combination of values, or the trials of a search, as far as they are not finished.

    Writes sweep.json, .md, .html and .png.

    Args:
        config_file: a YAML with `sweep`.
        overrides: `key.sub=value`, as on the command line.

    Returns:
        The content of sweep.json.

    Raises:
        UserError: a mistake in the config, no `sweep` in it, or an output directory with other inputs in it.
        RunFailed: a run failed; finished ones are kept.
    """

    def is_finished_grid(config: RunConfig) -> bool:
        """Return whether all runs of a grid are finished; only its database can tell for a search."""
        is_grid = bool(config.sweep.space) and not config.sweep.trials
        return is_grid and all_finished(plan_grid(config)[0])

    config = load_config(config_file, overrides, True, is_finished_grid)
    check_sections(config, "sweep", ["sweep"])
    report_unread(overrides, [config.method])
    if not config.sweep.space:
        raise UserError(
            f"{config_file}: has no sweep.space; list the values of a field, such as lora: {{r: [4, 8]}}"
        )
    known: dict[str, Any] = {}
    if config.sweep.trials:
        runs, points = _run_search(config, config_file, overrides)
    else:
        runs, points = plan_grid(config)
        planned, runs = runs, run_all(config_file, overrides, runs, SWEEP)
        points = {run.variant: points[run.variant] for run in runs if run.variant in points}
        known = left_out(planned, runs)
    known |= origin("sweep", config_file, overrides) | {"points": points}
    return write_report(SWEEP, Path(config.output_dir), folders_of(runs), known)


def plan_grid(config: RunConfig) -> tuple[list[PlannedRun], dict[str, Point]]:
    """Plan the base and each combination of values; return the runs, and the point of each variant.

    Raises:
        UserError: two combinations have the same name.
    """
    points = grid(config.sweep)
    if len(points) < prod(len(choices(values)) for values in config.sweep.space.values()):
        raise UserError("sweep.space gives two runs the same name; remove equal values, or give them labels")
    swept = with_grid(config)
    runs = plan_base(config)
    for name in points:
        runs += plan_variant(name, with_variant(swept, name), swept.variants[name])
    return runs, points


def plan_base(config: RunConfig) -> list[PlannedRun]:
    """Plan the base without training, which every variant is compared with."""
    return plan_variant(BASE, config.model_copy(update={"method": BASE}), {"method": BASE})


def plan_trials(config: RunConfig, points: Mapping[str, Point]) -> list[PlannedRun]:
    """Plan the runs of points of a search, with one seed each."""
    runs: list[PlannedRun] = []
    for name, point in points.items():
        changes = changes_of(config.sweep, point)
        one = config.model_copy(update={"variants": {name: changes}, "seeds": None})
        runs += plan_variant(name, with_variant(one, name), changes)
    return runs


def _run_search(
    config: RunConfig, config_file: str | Path, overrides: Sequence[str]
) -> tuple[list[PlannedRun], dict[str, Point]]:
    from lora_hf.experiments.search import TRIAL, search, stored_points
    from lora_hf.runs.run import check_before_loading  # here: it imports PyTorch

    base = plan_base(config)
    check_root(base[0].config, (BASE, TRIAL), SWEEP)
    with run_lock(Path(config.output_dir)):  # another search here would add trials to the same database
        stored = plan_trials(config, stored_points(config))
        for run in stored:  # all of them before the base is run
            RunDirectory(run.config).check()
        if not (all_finished(base) or stored):
            swept = with_grid(config)  # of ranges, both ends
            check_before_loading(with_variant(swept, name) for name in swept.variants)
        run_each(config_file, overrides, base)
        points = search(
            config,
            lambda name, point: run_each(config_file, overrides, plan_trials(config, {name: point})),
            is_new=config.overwrite and not (stored and all_finished(stored)),
        )
    return base + plan_trials(config, points), points
