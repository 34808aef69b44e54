"""`variants:` of a study: each a run that lays a few fields over the common ones."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lora_hf.config.problems import KeyPath, Mistake, mistakes_of
from lora_hf.config.schema import RunConfig
from lora_hf.config.sweep import changes_of, grid

OF_THE_STUDY = ("arms", "output_dir", "overwrite", "seed", "seeds", "sweep", "variants")
"""Fields that are the same for all variants."""


def laid_over(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The data with the changes in it: a section's key by key, everything else as a whole."""
    merged = dict(data)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = {**old, **value} if both else value  # type: ignore[dict-item]
    return merged


def with_variant(config: RunConfig, name: str) -> RunConfig:
    """A study's config with one variant's fields in the place of the common ones.

    Raises:
        ValidationError: the two do not make a config.
    """
    return RunConfig.model_validate(_merged(config, name))


def with_grid(config: RunConfig) -> RunConfig:
    """The config with each combination of its sweep as a variant."""
    found = {name: changes_of(config.sweep, point) for name, point in grid(config.sweep).items()}
    return config.model_copy(update={"variants": found})


def check_variants(config: RunConfig) -> list[Mistake]:
    """Every mistake in the variants of a study, each on its own over the common fields."""
    mistakes = [mistake for name in config.variants for mistake in _check(config, name)]
    swept = with_grid(config)
    found = [mistake for name in swept.variants for mistake in _check(swept, name)]
    return mistakes + [Mistake(("sweep",), text.replace("variants.", "sweep: ", 1)) for _, text in found]


def _merged(config: RunConfig, name: str) -> dict[str, Any]:
    return laid_over(config.model_dump(mode="json"), config.variants[name])


def _check(config: RunConfig, name: str) -> list[Mistake]:
    path: KeyPath = ("variants", name)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):  # it becomes a folder's name
        return [Mistake(path, f"variants: {name!r} is not made of 1 to 64 letters, digits, '_' and '-'")]
    if wrong := [key for key in config.variants[name] if key in OF_THE_STUDY]:
        text = f"variants.{name}: {wrong[0]!r} is the same for all variants; put it at the top level"
        return [Mistake((*path, wrong[0]), text)]
    try:
        with_variant(config, name)
    except ValidationError as error:
        found = mistakes_of(error, _merged(config, name))
        return [Mistake((*path, *inner), f"variants.{name}: {text}") for inner, text in found]
    return []
