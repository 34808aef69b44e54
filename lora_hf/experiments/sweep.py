"""A sweep: the same run over a grid of values, or where a search looks, and what that says of each value."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.sweep import Point, changes_of, grid
from lora_hf.config.variants import with_grid, with_variant
from lora_hf.errors import UserError
from lora_hf.experiments.reports import report_of
from lora_hf.experiments.runner import (
    Arm,
    all_finished,
    arms_of,
    check_root,
    folders_of,
    run_arms,
    run_each,
    shell,
)
from lora_hf.run_files import SWEEP

BASE = "base"


def sweep(config_file: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run what is not yet done, and write sweep.json, .md, .html and .png.

    Args:
        config_file: a YAML with `sweep`.
        overrides: `key.sub=value`, as on the command line.

    Returns:
        What sweep.json holds.

    Raises:
        UserError: a mistake in the config, no `sweep` in it, or an output directory with other inputs in it.
        RunFailed: a run did not end well; those that did are kept.
    """
    config = load_config(config_file, overrides, True, _is_finished_grid)
    if not config.sweep.space:
        raise UserError(
            f"{config_file}: has no sweep.space; list the values of a field, such as lora: {{r: [4, 8]}}"
        )
    arms, points = (_searched if config.sweep.trials else _gridded)(config, config_file, overrides)
    known = {"command": shell("sweep", config_file, overrides), "points": points}
    return report_of(SWEEP, Path(config.output_dir), folders_of(arms), known)


def _is_finished_grid(config: RunConfig) -> bool:
    """Return whether a grid's runs have all ended; a search has to ask its store."""
    return not config.sweep.trials and bool(config.sweep.space) and all_finished(_grid_arms(config)[0])


def _gridded(
    config: RunConfig, config_file: str | Path, overrides: Sequence[str]
) -> tuple[list[Arm], dict[str, Point]]:
    arms, points = _grid_arms(config)
    run_arms(config_file, overrides, arms, SWEEP)
    return arms, points


def _grid_arms(config: RunConfig) -> tuple[list[Arm], dict[str, Point]]:
    points = grid(config.sweep)
    if len(points) < len(list(points)):
        raise UserError("sweep.space gives two runs one name")
    swept = with_grid(config)
    arms = base_arm(config)
    for name in points:
        arms += arms_of(name, with_variant(swept, name), swept.variants[name])
    return arms, points


def base_arm(config: RunConfig) -> list[Arm]:
    """The untouched base, which costs its scoring alone: what every run is seen against."""
    return arms_of(BASE, config.model_copy(update={"method": BASE}), {"method": BASE})


def trial_arms(config: RunConfig, name: str, point: Point) -> list[Arm]:
    """The run of one point, of one seed."""
    changes = changes_of(config.sweep, point)
    one = config.model_copy(update={"variants": {name: changes}, "seeds": None})
    return arms_of(name, with_variant(one, name), changes)


def _searched(
    config: RunConfig, config_file: str | Path, overrides: Sequence[str]
) -> tuple[list[Arm], dict[str, Point]]:
    from lora_hf.experiments.search import TRIAL, search

    arms = base_arm(config)
    check_root(arms[0].config, (BASE, TRIAL), SWEEP)
    run_each(config_file, overrides, arms)
    points = search(
        config, lambda name, point: run_each(config_file, overrides, trial_arms(config, name, point))
    )
    for name, point in points.items():
        arms += trial_arms(config, name, point)
    return arms, points
