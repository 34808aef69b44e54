"""The comparison: base, full fine-tuning and LoRA on the same data and seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_hf.config import Method, RunConfig
from lora_hf.config.file import load_config
from lora_hf.config.model import DENSE
from lora_hf.files import write_json, write_text
from lora_hf.runs.study import Arm, arms_of, gather, run_arms
from lora_hf.runs.summary import summarize_arms

COMPARISON, TABLE, PICTURE = "comparison.json", "comparison.md", "comparison.png"
ORDER: tuple[Method, ...] = ("base", "lora", "full")
"""Of the runs: a target that matches nothing is found before the hours of full fine-tuning."""


def plan_arms(config: RunConfig) -> list[Arm]:
    """The runs of each method, in `ORDER`; what only LoRA can have is taken from the others."""
    arms = []
    for method in ORDER:
        changes: dict[str, Any] = {"method": method}
        if method == "full":
            changes["model"] = DENSE
        if method != "lora":
            changes["loraplus_lr_ratio"] = None
        arms += arms_of(method, config.model_copy(update={"method": method}), changes)
    return arms


def compare(config_file: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run what is not yet done, and write comparison.json, comparison.md and comparison.png.

    Args:
        config_file: a YAML; its `method` is not read.
        overrides: `key.sub=value`, as on the command line.

    Returns:
        What comparison.json holds.

    Raises:
        UserError: a mistake in the config, or an output directory with other inputs in it.
        ArmFailed: an arm did not end well; those that did are kept.
    """
    config = load_config(config_file, overrides)
    arms = plan_arms(config)
    run_arms(config_file, overrides, arms, (COMPARISON, TABLE, PICTURE))
    comparison = summarize_arms(*gather(arms))
    write_report(Path(config.output_dir), comparison)
    return comparison


def write_report(root: Path, comparison: dict[str, Any]) -> None:
    """The table as Markdown, the figures as JSON, and the picture."""
    from lora_hf.reporting.plots import draw_comparison
    from lora_hf.reporting.table import comparison_markdown

    write_json(root / COMPARISON, comparison)
    write_text(root / TABLE, comparison_markdown(comparison))
    draw_comparison(comparison, root / PICTURE)
