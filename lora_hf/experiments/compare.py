"""Experiments over listed variants: base, full and LoRA (`compare`), or those of a config (`methods`).

An experiment is a list of planned runs; those that are not finished are run, then reported together.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_hf.config import Method, RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.model import DENSE
from lora_hf.config.variants import with_variant
from lora_hf.errors import UserError
from lora_hf.experiments.report import write_report
from lora_hf.experiments.runner import (
    PlannedRun,
    all_finished,
    check_sections,
    folders_of,
    left_out,
    origin,
    plan_variant,
    run_all,
)
from lora_hf.run_files import COMPARISON, VARIANTS
from lora_hf.run_records import Comparison
from lora_hf.runs.start import report_unread

ORDER: tuple[Method, ...] = ("base", "lora", "full")
"""LoRA runs before full fine-tuning: what fails when it trains or saves shows in the shorter run."""
REFERENCES = ("base", "lora")
"""Variants of a study that the others are compared with: times with the base's, scores with plain LoRA's."""


def compare(
    config_file: str | Path, overrides: Sequence[str] = (), known: Mapping[str, Any] | None = None
) -> Comparison:
    """Run base, full fine-tuning and LoRA on the same data and seeds, as far as they are not finished.

    Writes comparison.json, .md, .html and .png.

    Args:
        config_file: a YAML; its `method` is not used.
        overrides: `key.sub=value`, as on the command line.
        known: what the report holds beside the runs: another `command`, or `published` figures.

    Returns:
        The content of comparison.json.

    Raises:
        UserError: a mistake in the config, or an output directory with other inputs in it.
        RunFailed: a run failed; finished ones are kept.
    """
    return _experiment(
        "compare", COMPARISON, plan_comparison, config_file, overrides, is_study=False, known=known
    )


def compare_methods(config_file: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Run every variant of a config on the same data, as far as they are not finished.

    Writes methods.json, .md, .html and .png.

    Args:
        config_file: a YAML with `variants`.
        overrides: `key.sub=value`, as on the command line; `variants.<name>.key=value` for one variant.

    Returns:
        The content of methods.json.

    Raises:
        UserError: a mistake in the config, or an output directory with other inputs in it.
        RunFailed: a run failed; finished ones are kept.
    """
    return _experiment("methods", VARIANTS, plan_methods, config_file, overrides, is_study=True)


def _experiment(
    verb: str,
    kind: str,
    plan: Callable[[RunConfig], list[PlannedRun]],
    config_file: str | Path,
    overrides: Sequence[str],
    is_study: bool,
    known: Mapping[str, Any] | None = None,
) -> Comparison:
    config = load_config(config_file, overrides, is_study, lambda found: all_finished(plan(found)))
    runs = plan(config)
    report_unread(overrides, [run.config.method for run in runs])
    planned, runs = runs, run_all(config_file, overrides, runs, kind)
    made = origin(verb, config_file, overrides) | left_out(planned, runs) | dict(known or {})
    return write_report(kind, Path(config.output_dir), folders_of(runs), made)


def plan_comparison(config: RunConfig) -> list[PlannedRun]:
    """Plan the runs of each method, in `ORDER`; fields that only LoRA has are removed from the others.

    Raises:
        UserError: the config lists variants or a sweep, which a comparison does not run.
    """
    check_sections(config, "compare")
    runs = []
    for method in ORDER:
        changes: dict[str, Any] = {"method": method}
        if method == "full":
            changes["model"] = DENSE
        if method != "lora":
            changes["loraplus_lr_ratio"] = None
        runs += plan_variant(method, config.model_copy(update={"method": method}), changes)
    return runs


def plan_methods(config: RunConfig) -> list[PlannedRun]:
    """Plan the runs of each variant, in the config's order.

    Raises:
        UserError: the config has no variant `base` or `lora`, or a sweep, which this experiment does not run.
    """
    check_sections(config, "methods", ["variants"])
    if missing := [name for name in REFERENCES if name not in config.variants]:
        raise UserError(
            f"variants={sorted(config.variants)} lacks {missing[0]!r}; add it: others are compared with it"
        )
    return [
        run
        for name, changes in config.variants.items()
        for run in plan_variant(name, with_variant(config, name), changes)
    ]
