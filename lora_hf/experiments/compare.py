"""The comparison: base, full fine-tuning and LoRA on the same data and seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_hf.config import Method, RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.model import DENSE
from lora_hf.experiments.reports import report_of
from lora_hf.experiments.runner import Arm, all_finished, arms_of, folders_of, run_arms, shell
from lora_hf.run_files import COMPARISON

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
    """Run what is not yet done, and write comparison.json, .md, .html and .png.

    Args:
        config_file: a YAML; its `method` is not read.
        overrides: `key.sub=value`, as on the command line.

    Returns:
        What comparison.json holds.

    Raises:
        UserError: a mistake in the config, or an output directory with other inputs in it.
        RunFailed: an arm did not end well; those that did are kept.
    """
    config = load_config(config_file, overrides, is_done=lambda run: all_finished(plan_arms(run)))
    arms = plan_arms(config)
    run_arms(config_file, overrides, arms, COMPARISON)
    command = shell("compare", config_file, overrides)
    return report_of(COMPARISON, Path(config.output_dir), folders_of(arms), {"command": command})
