"""The study of methods: every variant of a config on the same data, in one table and one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.variants import with_variant
from lora_hf.errors import UserError
from lora_hf.experiments.reports import report_of
from lora_hf.experiments.runner import Arm, all_finished, arms_of, folders_of, run_arms, shell
from lora_hf.run_files import VARIANTS

YARDSTICKS = ("base", "lora")
"""Variants that the others are measured against: times against the base's, scores against plain LoRA's."""


def plan_variants(config: RunConfig) -> list[Arm]:
    """The runs of each variant, in the config's order.

    Raises:
        UserError: the config has no variant `base` or `lora`.
    """
    if missing := [name for name in YARDSTICKS if name not in config.variants]:
        raise UserError(
            f"variants={sorted(config.variants)} lacks {missing[0]!r}, which others are held against"
        )
    groups = config.variants.items()
    return [arm for name, changes in groups for arm in arms_of(name, with_variant(config, name), changes)]


def compare_methods(config_file: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run what is not yet done, and write methods.json, .md, .html and .png.

    Args:
        config_file: a YAML with `variants`.
        overrides: `key.sub=value`, as on the command line; `variants.<name>.key=value` for one variant.

    Returns:
        What methods.json holds.

    Raises:
        UserError: a mistake in the config, or an output directory with other inputs in it.
        RunFailed: a variant did not end well; those that did are kept.
    """
    config = load_config(config_file, overrides, True, lambda study: all_finished(plan_variants(study)))
    arms = plan_variants(config)
    run_arms(config_file, overrides, arms, VARIANTS)
    command = shell("methods", config_file, overrides)
    return report_of(VARIANTS, Path(config.output_dir), folders_of(arms), {"command": command})
