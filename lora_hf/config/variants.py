"""The `variants:` of a study: runs that replace a few of the common fields."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from lora_hf.config.problems import Mistake, dotted, mistakes_of
from lora_hf.config.schema import RunConfig
from lora_hf.config.sweep import SPACE, Point, Range, changes_of, choices, grid
from lora_hf.config.training import check_training

OF_THE_STUDY = ("arms", "output_dir", "overwrite", "seed", "seeds", "sweep", "task", "variants")
"""Fields that no variant may change."""


def laid_over(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data with changes: sections are merged key by key, other values are replaced."""
    merged = dict(data)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = {**old, **value} if both else value  # type: ignore[dict-item]
    return merged


def with_variant(config: RunConfig, name: str) -> RunConfig:
    """Return a study's config with the fields of one variant.

    Raises:
        ValidationError: the result is not a valid config.
    """
    return RunConfig.model_validate(_merged(config, name))


def with_grid(config: RunConfig) -> RunConfig:
    """Return the config with each combination of its sweep as a variant."""
    found = {name: changes_of(config.sweep, point) for name, point in grid(config.sweep).items()}
    return config.model_copy(update={"variants": found})


def check_variants(config: RunConfig) -> list[Mistake]:
    """Return every mistake in the variants of a study."""
    of_sweep = sweep_mistakes(config, _check_point) or _fraction_mistakes(config)
    return variant_mistakes(config, _check) + of_sweep


def variant_mistakes(config: RunConfig, check: Callable[[RunConfig, str], list[Mistake]]) -> list[Mistake]:
    """Return what a check finds in the variants of a study, each mistake at its variant.

    Args:
        config: the study.
        check: takes the study and the name of a variant; its paths begin in the variant's fields.
    """
    return [
        Mistake(("variants", name, *mistake.path), f"variants.{name}: {mistake.text}")
        for name in config.variants
        for mistake in check(config, name)
    ]


def sweep_mistakes(config: RunConfig, check: Callable[[RunConfig, str], list[Mistake]]) -> list[Mistake]:
    """Return what a check finds in the combinations of a sweep, each mistake once, at the value of its axis.

    Args:
        config: with the sweep.
        check: as for `variant_mistakes`; takes the config with each combination as a variant.
    """
    swept = with_grid(config)
    found = [
        _at_axis(config, name, point, mistake)
        for name, point in grid(config.sweep).items()
        for mistake in check(swept, name)
    ]
    return list(dict.fromkeys(found))


def _fraction_mistakes(config: RunConfig) -> list[Mistake]:
    """Return the ranges that a search would draw fractions from, for fields that take whole numbers only.

    Args:
        config: with a sweep whose combinations are valid; of a range, these hold the two ends.
    """
    first, found = next(iter(grid(config.sweep).values()), {}), []
    for axis, values in config.sweep.space.items():
        if isinstance(values, Range) and not values.integer and _are_whole(values):
            changes = changes_of(config.sweep, first | {axis: values.high - 0.5})
            name = f"{axis.rpartition('.')[2]}-fraction"
            if _check_point(config.model_copy(update={"variants": {name: changes}}), name):
                text = f"sweep.space.{axis} takes whole numbers only: add integer: true to the range"
                found.append(Mistake((*SPACE, axis), text))
    return found


def _are_whole(values: Range) -> bool:
    return values.low.is_integer() and values.high.is_integer()


def _at_axis(config: RunConfig, name: str, point: Point, mistake: Mistake) -> Mistake:
    """Return a mistake in a combination at the value that sets its field, or else with the run's name."""
    for axis, choice in point.items():
        values = config.sweep.space[axis]
        is_labelled = isinstance(values, Mapping)
        for field in values[choice] if is_labelled else (axis,):
            if not re.match(rf"{re.escape(field)}(\W|$)", dotted(mistake.path)):
                continue
            if is_labelled:
                return Mistake((*SPACE, axis, choice, field), f"sweep.space: {axis}.{choice}: {mistake.text}")
            place = () if isinstance(values, Range) else (choices(values).index(choice),)
            return Mistake((*SPACE, axis, *place), f"sweep.space: {mistake.text}")
    return Mistake(SPACE, f"sweep.space: run {name}: {mistake.text}")


def _merged(config: RunConfig, name: str) -> dict[str, Any]:
    changes = config.variants[name]
    if isinstance(training := changes.get("training"), Mapping):  # of a sweep, its values are as written
        in_types, _ = check_training(training, scores=config.task.score_names)
        changes = {**changes, "training": {**training, **in_types}}
    return laid_over(config.model_dump(mode="json"), changes)


def _check(config: RunConfig, name: str) -> list[Mistake]:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):  # it becomes a folder's name
        return [Mistake((), f"{name!r} must consist of 1 to 64 letters, digits, '_' and '-'")]
    if wrong := [key for key in config.variants[name] if key in OF_THE_STUDY]:
        return [Mistake((wrong[0],), f"{wrong[0]!r} cannot vary; move it to the top level")]
    try:
        with_variant(config, name)
    except ValidationError as error:
        return mistakes_of(error, _merged(config, name))
    return []


def _check_point(swept: RunConfig, name: str) -> list[Mistake]:
    """As `_check`, and each field of `training`; those of listed variants are checked where they are read."""
    training = swept.variants[name].get("training")
    scores = swept.task.score_names
    found = check_training(training, scores=scores)[1] if isinstance(training, Mapping) else []
    return found + _check(swept, name)
