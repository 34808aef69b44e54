"""The `variants:` of a study: runs that replace a few of the common fields."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lora_hf.config.problems import KeyPath, Mistake, mistakes_of
from lora_hf.config.schema import RunConfig
from lora_hf.config.sweep import changes_of, grid

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
    mistakes = [mistake for name in config.variants for mistake in _check(config, name)]
    swept = with_grid(config)
    found = [mistake for name in swept.variants for mistake in _check(swept, name)]
    return mistakes + [Mistake(("sweep",), text.replace("variants.", "sweep: ", 1)) for _, text in found]


def _merged(config: RunConfig, name: str) -> dict[str, Any]:
    return laid_over(config.model_dump(mode="json"), config.variants[name])


def _check(config: RunConfig, name: str) -> list[Mistake]:
    path: KeyPath = ("variants", name)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):  # it becomes a folder's name
        return [Mistake(path, f"variants: {name!r} must consist of 1 to 64 letters, digits, '_' and '-'")]
    if wrong := [key for key in config.variants[name] if key in OF_THE_STUDY]:
        text = f"variants.{name}: {wrong[0]!r} cannot vary; move it to the top level"
        return [Mistake((*path, wrong[0]), text)]
    try:
        with_variant(config, name)
    except ValidationError as error:
        found = mistakes_of(error, _merged(config, name))
        return [Mistake((*path, *inner), f"variants.{name}: {text}") for inner, text in found]
    return []
