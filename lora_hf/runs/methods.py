"""The study of methods: every variant of a config on the same data, in one table and one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.file import load_config
from lora_hf.config.variants import with_variant
from lora_hf.errors import UserError
from lora_hf.files import write_json, write_text
from lora_hf.runs.study import Arm, arms_of, gather, run_arms
from lora_hf.runs.summary import summarize_variants

STUDY, TABLE, PICTURE = "methods.json", "methods.md", "methods.png"
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
    """Run what is not yet done, and write methods.json, methods.md and methods.png.

    Args:
        config_file: a YAML with `variants`.
        overrides: `key.sub=value`, as on the command line; `variants.<name>.key=value` for one variant.

    Returns:
        What methods.json holds.

    Raises:
        UserError: a mistake in the config, or an output directory with other inputs in it.
        ArmFailed: a variant did not end well; those that did are kept.
    """
    config = load_config(config_file, overrides, is_study=True)
    arms = plan_variants(config)
    run_arms(config_file, overrides, arms, (STUDY, TABLE, PICTURE))
    study = summarize_variants(*gather(arms))
    write_report(Path(config.output_dir), study)
    return study


def write_report(root: Path, study: dict[str, Any]) -> None:
    """The table as Markdown, the figures as JSON, and the picture."""
    from lora_hf.reporting.methods_plot import draw_methods
    from lora_hf.reporting.methods_table import methods_markdown

    write_json(root / STUDY, study)
    write_text(root / TABLE, methods_markdown(study))
    draw_methods(study, root / PICTURE)
