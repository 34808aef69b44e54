"""Commands that train, or plan a training, from a config."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_hf import distributed as processes
from lora_hf.cli.options import Config, Json, Overrides, print_report, print_scores
from lora_hf.run_files import COMPARISON, SWEEP, VARIANTS

if TYPE_CHECKING:
    from lora_hf.run_records import Comparison


def train(config: Config, overrides: Overrides = None) -> None:
    """Train and score one model.

    Start it by torchrun or `accelerate launch` to use several processes.

    [dim]lora-hf train --config configs/quickstart.yaml lora.r=8[/dim]
    """
    from lora_hf.runs.start import run_config

    run, record = run_config(config, overrides or [])
    processes.stop()
    if processes.is_main():
        print_scores(record)
        print(f"results: {Path(run.output_dir) / 'results.json'}")


def compare(config: Config, overrides: Overrides = None) -> None:
    """Score the base model, full fine-tuning and LoRA on the same data, and compare them.

    [dim]lora-hf compare --config configs/quickstart.yaml seeds=[1,2,3][/dim]
    """
    from lora_hf.experiments.compare import compare as run

    _print_comparison(run(config, overrides or []), COMPARISON, config, overrides)


def methods(config: Config, overrides: Overrides = None) -> None:
    """Train every variant in a config on the same data, and compare them.

    [dim]lora-hf methods --config configs/methods.yaml training.max_steps=100[/dim]
    """
    from lora_hf.experiments.compare import compare_methods

    _print_comparison(compare_methods(config, overrides or []), VARIANTS, config, overrides)


def sweep(config: Config, overrides: Overrides = None) -> None:
    """Train with several values of some fields, and find the best.

    [dim]lora-hf sweep --config configs/rank_study.yaml training.max_steps=100[/dim]
    """
    from lora_hf.experiments.sweep import sweep as run

    _print_comparison(run(config, overrides or []), SWEEP, config, overrides)


def _print_comparison(
    comparison: "Comparison", kind: str, config_file: Path, overrides: list[str] | None
) -> None:
    from rich.console import Console

    from lora_hf.config.load import load_config
    from lora_hf.reporting.comparison_table import comparison_terminal

    Console().print(comparison_terminal(comparison))
    config = load_config(config_file, overrides or [], is_done=lambda run: True)
    print_report(Path(config.output_dir), kind)


def reproduce(overrides: Overrides = None) -> None:
    """Repeat the published comparison: FLAN-T5-base on DialogSum, from the Hub.

    [dim]lora-hf reproduce training.per_device_train_batch_size=32[/dim]
    """
    from lora_hf.experiments.reproduce import CONFIG
    from lora_hf.experiments.reproduce import reproduce as run_published

    _print_comparison(run_published(overrides or []), COMPARISON, Path(CONFIG), overrides)


def plan(
    config: Config,
    overrides: Overrides = None,
    measure: Annotated[
        bool, typer.Option(help="Time three training steps on random weights of the same shape.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Estimate the memory, disk space and steps of a run without training.

    [dim]lora-hf plan --config configs/flan_t5_base_dialogsum_lora.yaml lora.r=16[/dim]
    """
    from lora_hf.config.load import load_config

    run = load_config(config, overrides or [])
    from lora_hf.planning.plan import plan as plan_run

    record = plan_run(run)
    if measure:
        from lora_hf.planning.measure import step_seconds

        record["step_seconds"] = step_seconds(run, record)
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from lora_hf.reporting.plan_table import plan_terminal

    Console().print(*plan_terminal(record), sep="\n")
