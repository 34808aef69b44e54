"""The `sweep:` section: fields that take several values. Each combination is a separate run."""

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from lora_hf.config.types import Count, Flag, Number, Section, Text

Changes = dict[str, Any]
"""Fields as `section.key`, and their values."""
Point = dict[str, Any]
"""The value or label of a run on each axis."""


NESTED = ("model", "lora", "bottleneck", "prompt_tuning", "data", "training", "generation")
"""Sections whose fields may be nested: `lora: {r: [4, 8]}`."""


SPACE = ("sweep", "space")


class Range(Section):
    """A range of numbers for a search."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: Flag = False
    """Draw uniformly in the logarithm, as is usual for learning rates."""
    integer: Flag = False
    """Draw whole numbers only."""

    @model_validator(mode="after")
    def _check_order(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            remedy = "holds an empty range: low must be below high, and above 0 with log: true"
            raise PydanticCustomError("together", remedy, {"path": SPACE})
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            remedy = f"draws whole numbers between {self.low:g} and {self.high:g}: give whole bounds"
            raise PydanticCustomError("together", remedy, {"path": SPACE})
        return self


class SweepSection(Section):
    """The fields that vary. Without `trials` every combination runs; with it, a search chooses."""

    space: dict[Text, Any] = {}
    """By `section.key` (or nested): a list of values, or {low, high, log, integer} for a search. Or by a name
    of your own: {label: {section.key: value, ...}, ...}, for fields that change together."""
    trials: Count | None = None
    """Number of runs of a search (Optuna's TPE) for the best main score on validation; null runs the grid."""

    @field_validator("space", mode="before")
    @classmethod
    def _read_space(cls, space: Any) -> Any:
        if not isinstance(space, Mapping):
            return {} if space is None else space
        flat = [pair for axis, values in space.items() for pair in _flat(axis, values)]
        names = [axis for axis, _ in flat]
        if twice := [axis for axis in names if names.count(axis) > 1]:
            remedy = f"gives {twice[0]} twice, nested and with a dot: write it once"
            raise PydanticCustomError("together", remedy, {"path": SPACE})
        return {axis: _read_axis(axis, values) for axis, values in flat}

    @model_validator(mode="after")
    def _check_space(self) -> "SweepSection":
        ranges = [axis for axis, values in self.space.items() if isinstance(values, Range)]
        if ranges and not self.trials:
            remedy = f"has a range for {ranges[0]}, which has no grid: list values, or set sweep.trials"
            raise PydanticCustomError("together", remedy, {"path": SPACE})
        set_by: dict[str, str] = {}
        for axis, values in self.space.items():
            for field in dict.fromkeys(fields_of(axis, values)):
                other = next((known for known in set_by if _overlap(known, field)), None)
                if other is not None:
                    remedy = (
                        f"sets {field} on the axes {set_by[other]!r} and {axis!r}, so that one value "
                        "replaces the other and two runs are the same: set it on one of them"
                    )
                    raise PydanticCustomError("together", remedy, {"path": SPACE})
            set_by |= dict.fromkeys(fields_of(axis, values), axis)
        return self


def _flat(axis: str, values: Any) -> list[tuple[str, Any]]:
    """Return the fields of a section, or anything else as it is: `{lora: {r: 8}}` is `lora.r`."""
    is_section = axis in NESTED and isinstance(values, Mapping) and not {"low", "high"} <= values.keys()
    return [(f"{axis}.{key}", v) for key, v in values.items()] if is_section else [(axis, values)]


def fields_of(axis: str, values: Any) -> list[str]:
    """Return the fields that an axis sets."""
    return [field for of in values.values() for field in of] if isinstance(values, Mapping) else [axis]


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _read_axis(axis: str, values: Any) -> Any:
    if isinstance(values, Range) or (isinstance(values, list) and values):
        return values
    if isinstance(values, Mapping) and {"low", "high"} <= values.keys():
        return Range.model_validate(values)
    if isinstance(values, Mapping) and values and all(isinstance(v, Mapping) for v in values.values()):
        return {
            label: dict(pair for field, value in of.items() for pair in _flat(field, value))
            for label, of in values.items()
        }
    remedy = f"must give {axis} a list of values, or low and high, or {{label: {{section.key: value}}}}"
    raise PydanticCustomError("together", remedy, {"path": SPACE})


def grid(sweep: SweepSection) -> dict[str, Point]:
    """Return the point of each combination by its run's name, last axis fastest; ranges give both ends."""
    sides = [[(axis, choice) for choice in choices(values)] for axis, values in sweep.space.items()]
    points = [dict(combination) for combination in product(*sides)] if sides else []
    return {run_name(point): point for point in points}


def choices(values: Any) -> list[Any]:
    """Return the values, the labels, or the two ends of an axis."""
    return [values.low, values.high] if isinstance(values, Range) else list(values)


def run_name(point: Point) -> str:
    """Return the folder name of a point, such as `r-8_scaling-sqrt`."""
    parts = [f"{axis.rpartition('.')[2]}-{choice}" for axis, choice in point.items()]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(parts))


def changes_of(sweep: SweepSection, point: Point) -> Changes:
    """Return the fields of a point, nested like the config."""
    nested: Changes = {}
    for axis, choice in point.items():
        values = sweep.space[axis]
        flat = values[choice] if isinstance(values, Mapping) else {axis: choice}
        for key, value in flat.items():
            section, _, field = key.rpartition(".")
            if section:
                nested.setdefault(section, {})[field] = value
            else:
                nested[field] = value
    return nested
