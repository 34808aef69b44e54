"""Commands that train, or plan a training, from a config or from a model and data."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_hf import distributed as processes
from lora_hf import terminal
from lora_hf.cli.next_steps import show_next, trainer_of
from lora_hf.cli.options import (
    Columns,
    Config,
    Json,
    MaybeConfig,
    OutputDir,
    Overrides,
    Words,
    print_report,
    print_scores,
)
from lora_hf.cli.starting import source_of
from lora_hf.run_files import ADAPTER, COMPARISON, PAGE, SWEEP, VARIANTS, merged_folder

if TYPE_CHECKING:
    from lora_hf.config import RunConfig
    from lora_hf.run_records import Comparison, RunResult

logger = logging.getLogger(__name__)


def train(
    config: MaybeConfig = None, words: Words = None, output: OutputDir = None, columns: Columns = None
) -> None:
    """Train one model and score it.

    The run directory holds the adapter, scores and predictions. Its config.yaml has every field of the run.

    To use several processes, start it with `torchrun` or `accelerate launch`.

    From a config: [dim]lora-hf train --config quickstart lora.r=8[/dim]

    Without one: [dim]lora-hf train google/flan-t5-small talks.csv -o runs/talks[/dim]

    With columns of other names: [dim]lora-hf train embedded talks.csv --columns text,title[/dim]
    """
    from lora_hf.runs.start import run_config

    source = source_of("train", config, words, output, columns)
    with source.naming_columns():
        run, record = run_config(source.config, source.overrides)
    processes.stop()
    if processes.is_main() and not terminal.is_part():
        terminal.line("")
        print_scores(record)
        folder = Path(run.output_dir)
        _print_trivial(record, folder)
        print(f"results: {folder / 'results.json'}")
        has_adapter = (folder / ADAPTER).is_dir()
        show_next(
            "train",
            adapter=folder if has_adapter else None,
            run=folder,
            mergeable=folder if has_adapter and run.method == "lora" else None,
            merged=Path(merged_folder(folder)),
            compared=source.compared(folder),
        )


def _print_trivial(record: "RunResult", run: Path) -> None:
    """Print the best score that needs no model, which shows what a run's own score is worth."""
    from lora_hf.evaluation.metrics import Scoring
    from lora_hf.experiments.summary import trivial_scores
    from lora_hf.reporting.verdict import best_trivial
    from lora_hf.run_files import PREDICTIONS
    from lora_hf.run_records import read_predictions, score_of

    if not (run / PREDICTIONS).is_file():
        return
    scoring = Scoring.of_result(record)
    own = {"this run": score_of(record, scoring.main.name)}
    print(best_trivial(trivial_scores(read_predictions(run), scoring), scoring, own)[0])


def compare(
    config: MaybeConfig = None, words: Words = None, output: OutputDir = None, columns: Columns = None
) -> None:
    """Score the base model, full fine-tuning and LoRA on the same data, and compare them.

    With several seeds: [dim]lora-hf compare --config quickstart "seeds=[1,2,3]"[/dim]

    Without a config: [dim]lora-hf compare google/flan-t5-small talks.csv -o runs/talks[/dim]
    """
    from lora_hf.experiments.compare import compare as run

    source = source_of("compare", config, words, output, columns)
    with source.written():
        comparison = run(source.file, source.overrides)
    _print_comparison("compare", comparison, COMPARISON, source.file, source.overrides)


def methods(config: Config, overrides: Overrides = None) -> None:
    """Train every variant in a config on the same data, and compare them.

    In short: [dim]lora-hf methods --config methods training.max_steps=100[/dim]
    """
    from lora_hf.experiments.compare import compare_methods

    _print_comparison("methods", compare_methods(config, overrides or []), VARIANTS, config, overrides)


def sweep(config: Config, overrides: Overrides = None) -> None:
    """Train with several values of some fields, and find the best.

    In short: [dim]lora-hf sweep --config rank_study training.max_steps=100[/dim]
    """
    from lora_hf.experiments.sweep import sweep as run

    _print_comparison("sweep", run(config, overrides or []), SWEEP, config, overrides)


def _print_comparison(
    command: str, comparison: "Comparison", kind: str, config_file: Path, overrides: list[str] | None
) -> None:
    from rich.console import Console
    from rich.text import Text

    from lora_hf.config.load import load_config
    from lora_hf.reporting.comparison_table import comparison_terminal

    console = Console()
    terminal.line("")
    console.print(comparison_terminal(comparison))
    console.print()
    for number, finding in enumerate(_findings(comparison)):
        console.print(Text(finding, "bold" if number == 0 else ""), soft_wrap=not console.is_terminal)
    config = load_config(config_file, overrides or [], is_done=lambda run: True)
    print_report(Path(config.output_dir), kind)
    _show_after(command, config, kind)


def _findings(comparison: "Comparison") -> list[str]:
    """Return the verdict; its first finding says if it rests on one seed, as the facts of a report do."""
    from lora_hf.reporting.verdict import verdict
    from lora_hf.run_records import variants_of

    first, *others = verdict(comparison)
    has_seeds = any("seeds" in result for result in variants_of(comparison).values())
    return [first if has_seeds else f"{first} (one seed)", *others]


def _show_after(command: str, config: "RunConfig", kind: str) -> None:
    """Name the next commands of a comparison: its page, and the LoRA run in it."""
    folder = Path(config.output_dir)
    adapter = folder / "lora"
    is_toy = config.data.dataset_name == "embedded"
    show_next(
        command,
        page=folder / f"{kind}{PAGE}",
        adapter=adapter if (adapter / ADAPTER).is_dir() else None,
        file="FILE" if is_toy else None,
    )


def reproduce(overrides: Overrides = None) -> None:
    """Repeat the published comparison: FLAN-T5-base on DialogSum, from the Hub.

    With larger batches: [dim]lora-hf reproduce training.per_device_train_batch_size=32[/dim]
    """
    from lora_hf.experiments.reproduce import CONFIG
    from lora_hf.experiments.reproduce import reproduce as run_published

    _print_comparison("reproduce", run_published(overrides or []), COMPARISON, Path(CONFIG), overrides)


def plan(
    config: MaybeConfig = None,
    words: Words = None,
    columns: Columns = None,
    measure: Annotated[
        bool, typer.Option(help="Time three training steps on random weights of the same shape.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Estimate the memory, disk space and steps of a run without training.

    From a config: [dim]lora-hf plan --config configs/flan_t5_base_dialogsum_lora.yaml lora.r=16[/dim]

    Without one: [dim]lora-hf plan google/flan-t5-small talks.csv[/dim]

    With the GPU for each size of FLAN-T5: [dim]lora-hf plan -v --config flan_t5_base_dialogsum_lora[/dim]
    """
    from lora_hf.config.load import load_config

    source = source_of("plan", config, words, columns=columns)
    run = load_config(source.config, source.overrides)
    from lora_hf.planning.plan import plan as plan_run

    for field, (values, _) in run.listed_runs().items():
        if field != "seeds":  # which all need the same
            logger.warning(
                "%s=%s is not planned: this is the run of the fields outside it; to plan the largest of its "
                "runs, add that one's fields as KEY=VALUE",
                *(field, values),
            )
    with source.naming_columns():
        record = plan_run(run)
    if measure:
        from lora_hf.planning.measure import step_seconds

        record["step_seconds"] = step_seconds(run, record)
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from lora_hf.reporting.plan_table import plan_terminal

    is_verbose = logging.getLogger("lora_hf").isEnabledFor(logging.DEBUG)
    Console(highlight=False).print(*plan_terminal(record, is_verbose), sep="\n")
    show_next("plan", as_json, source=source.words, trainer=trainer_of(run))
