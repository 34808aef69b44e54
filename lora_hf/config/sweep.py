"""The `sweep:` section: fields that take several values, each combination a run of its own."""

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from lora_hf.config.types import Count, Flag, Number, Section, Text

Changes = dict[str, Any]
"""Fields as `section.key`, and what they are set to."""
Point = dict[str, Any]
"""Axis -> the value or the label that a run has on it."""


NESTED = ("model", "lora", "bottleneck", "prompt_tuning", "data", "training", "generation")
"""Sections whose fields may be written below them: `lora: {r: [4, 8]}`, as the command line nests them."""


SPACE = ("sweep", "space")


class Range(Section):
    """Numbers that a search draws from."""

    low: Number
    """The least."""
    high: Number
    """The largest."""
    log: Flag = False
    """Drawn evenly in the logarithm: for learning rates."""
    integer: Flag = False
    """Whole numbers only."""

    @model_validator(mode="after")
    def _check_order(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            remedy = "holds a range that is none: low must be below high, and above 0 with log: true"
            raise PydanticCustomError("together", remedy, {"path": SPACE})
        return self


class SweepSection(Section):
    """The fields that vary. Without `trials` every combination is run; with it a search chooses."""

    space: dict[Text, Any] = {}
    """`section.key` (or nested) -> a list of values, or {low, high, log, integer} to draw from; or a name of
    your own -> {label: {section.key: value, ...}, ...}, for fields that change together."""
    trials: Count | None = None
    """Runs of a search (Optuna's TPE) for the best ROUGE-1 on the validation split; null runs the grid."""

    @field_validator("space", mode="before")
    @classmethod
    def _read_space(cls, space: Any) -> Any:
        if not isinstance(space, Mapping):
            return {} if space is None else space
        flat: dict[str, Any] = {}
        for axis, values in space.items():
            is_section = (
                axis in NESTED and isinstance(values, Mapping) and not {"low", "high"} <= values.keys()
            )
            flat |= {f"{axis}.{key}": v for key, v in values.items()} if is_section else {axis: values}
        return {axis: _read_axis(axis, values) for axis, values in flat.items()}

    @model_validator(mode="after")
    def _check_space(self) -> "SweepSection":
        ranges = [axis for axis, values in self.space.items() if isinstance(values, Range)]
        if ranges and not self.trials:
            remedy = (
                f"has a range for {ranges[0]}, of which there is no grid: list values, or set sweep.trials"
            )
            raise PydanticCustomError("together", remedy, {"path": SPACE})
        return self


def _read_axis(axis: str, values: Any) -> Any:
    if isinstance(values, Range) or (isinstance(values, list) and values):
        return values
    if isinstance(values, Mapping) and {"low", "high"} <= values.keys():
        return Range.model_validate(values)
    if isinstance(values, Mapping) and values and all(isinstance(v, Mapping) for v in values.values()):
        return dict(values)
    remedy = f"gives {axis} neither a list of values, nor low and high, nor {{label: {{section.key: value}}}}"
    raise PydanticCustomError("together", remedy, {"path": SPACE})


def grid(sweep: SweepSection) -> dict[str, Point]:
    """The name of each combination's run -> its point, the last axis fastest; of ranges their two ends."""
    sides = [[(axis, choice) for choice in choices(values)] for axis, values in sweep.space.items()]
    points = [dict(combination) for combination in product(*sides)] if sides else []
    return {run_name(point): point for point in points}


def choices(values: Any) -> list[Any]:
    """What an axis can be: values, or labels, or a range's ends."""
    return [values.low, values.high] if isinstance(values, Range) else list(values)


def run_name(point: Point) -> str:
    """A folder's name: `r-8_scaling-sqrt`."""
    parts = [f"{axis.rpartition('.')[2]}-{choice}" for axis, choice in point.items()]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(parts))


def changes_of(sweep: SweepSection, point: Point) -> Changes:
    """The fields of a point, nested as the config's are."""
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
