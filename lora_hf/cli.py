"""The commands. What a verb needs is imported when it runs, after its config is read, so that --help and a
mistake in a config are quick. What they print goes to standard output; `status` says what went wrong.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_hf.status import exit_status, invoke

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune encoder-decoder models with LoRA, and compare base, full and LoRA in ROUGE.\n\n"
    "--debug, anywhere, shows where an error came from.",
)
Config = Annotated[Path, typer.Option("--config", help="The YAML of a run, such as configs/quickstart.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", show_default=False)]
Adapter = Annotated[str, typer.Option("--adapter", help="A folder, or USER/NAME on the Hub.")]
Base = Annotated[str | None, typer.Option("--base", help="The base model, if not the one the adapter names.")]


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Run one arm: load, adapt, train, score.

    [dim]lora-hf train --config configs/quickstart.yaml lora.r=8[/dim]
    """
    from lora_hf.config.file import load_config

    run = load_config(config, overrides or [])
    from lora_hf.runs.arm import run_arm  # after the config's mistakes: it takes seconds

    print_scores(run_arm(run.for_arm(run.method, run.seed, run.output_dir)))
    print(f"results: {Path(run.output_dir) / 'results.json'}")


@app.command()
def compare(config: Config, overrides: Overrides = None) -> None:
    """Run base, full fine-tuning and LoRA on the same data, then compare them.

    [dim]lora-hf compare --config configs/quickstart.yaml seeds=[1,2,3][/dim]
    """
    from lora_hf.config.file import load_config

    root = Path(load_config(config, overrides or []).output_dir)
    from rich.console import Console

    from lora_hf.reporting.table import comparison_terminal
    from lora_hf.runs import compare as comparing

    comparison = comparing.compare(config, overrides or [])
    Console().print(comparison_terminal(comparison))
    print(f"report: {root / comparing.TABLE}, {root / comparing.PICTURE}, {root / comparing.COMPARISON}")


@app.command()
def methods(config: Config, overrides: Overrides = None) -> None:
    """Run every variant of a config on the same data: one table, one picture.

    [dim]lora-hf methods --config configs/methods.yaml training.max_steps=100[/dim]
    """
    from lora_hf.config.file import load_config

    root = Path(load_config(config, overrides or [], is_study=True).output_dir)
    from rich.console import Console

    from lora_hf.reporting.methods_table import methods_terminal
    from lora_hf.runs import methods as study

    Console().print(methods_terminal(study.compare_methods(config, overrides or [])))
    print(f"report: {root / study.TABLE}, {root / study.PICTURE}, {root / study.STUDY}")


@app.command()
def reproduce(overrides: Overrides = None) -> None:
    """Run the published comparison again: FLAN-T5-base on DialogSum, from the Hub.

    [dim]lora-hf reproduce training.per_device_train_batch_size=32[/dim]
    """
    from rich.console import Console

    from lora_hf.runs.reproduce import reproduce as run_published

    Console().print(run_published(overrides or []))


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    measure: Annotated[bool, typer.Option(help="Time three steps on random weights of this shape.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """What a run will take, before anything is downloaded or trained: weights, memory, disk, time.

    [dim]lora-hf plan --config configs/flan_t5_base_dialogsum_lora.yaml lora.r=16[/dim]
    """
    from lora_hf.config.file import load_config

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


@app.command()
def evaluate(
    config: Config,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option(help="A folder, or USER/NAME on the Hub; none: base.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for predictions.jsonl and results.json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score a saved adapter, or the base model, on the test split.

    [dim]lora-hf evaluate --config configs/quickstart.yaml --adapter runs/quickstart/lora/adapter[/dim]
    """
    from lora_hf.config.file import load_config
    from lora_hf.evaluation.scoring import write_predictions
    from lora_hf.files import check_new, write_json
    from lora_hf.layout import PREDICTIONS, RESULTS

    if output:
        check_new(output)
    run = load_config(config, overrides or [])
    from lora_hf.runs import saved

    scores, rows = saved.evaluate(run, adapter)
    if output:
        write_predictions(output / PREDICTIONS, rows)
        write_json(output / RESULTS, scores)
    print(json.dumps(scores)) if as_json else print_scores(scores)


@app.command()
def predict(
    file: Annotated[Path, typer.Argument(help="Dialogues: jsonl, json, csv, parquet, or one in a .txt.")],
    adapter: Adapter,
    output: Annotated[Path | None, typer.Option(help="A new jsonl file; else standard output.")] = None,
    base: Base = None,
    dialogue_column: Annotated[str, typer.Option(help="The column that holds the dialogues.")] = "dialogue",
) -> None:
    """Summarize the dialogues of a file; no references are needed.

    [dim]lora-hf predict dialogues.jsonl --adapter runs/quickstart/lora/adapter --output summaries.jsonl[/dim]
    """
    from lora_hf.files import check_new, write_text

    if output:
        check_new(output)
    from lora_hf.runs import saved

    lines = saved.as_lines(saved.predict(file, adapter, base, dialogue_column))
    write_text(output, lines) if output else print(lines, end="")


@app.command()
def merge(
    adapter: Adapter,
    output: Annotated[Path, typer.Option(help="A new folder.")],
    base: Base = None,
    onto: Annotated[
        str | None, typer.Option(help="On a quantized base: checkpoint, dequantized or requantized.")
    ] = None,
) -> None:
    """Fold an adapter into its base and write a plain Transformers folder.

    [dim]lora-hf merge --adapter runs/quickstart/lora/adapter --output merged[/dim]
    """
    from lora_hf.runs.merging import merge as merge_adapter

    errors = merge_adapter(adapter, output, base, onto)
    for way, error in errors.items():
        print(f"{way}: logits moved by {error:.1e} of their size on a sample")
    print(f"{output}: {onto or 'merged'}")


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="Saved predictions: csv, jsonl, json or parquet.")],
    prediction: Annotated[str, typer.Option(help="The column of predictions.")],
    reference: Annotated[str, typer.Option(help="The column of references.")],
    group: Annotated[str | None, typer.Option(help="Rows alike in this column are one dialogue.")] = None,
    group_size: Annotated[int | None, typer.Option(help="So many rows in turn are one dialogue.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """ROUGE of saved predictions, with 95 % intervals over dialogues.

    [dim]lora-hf score saved.csv --prediction summary --reference human --group-size 3[/dim]
    """
    from lora_hf.evaluation.score import render_json, render_table, score_file

    scores = score_file(file, prediction, reference, group, group_size)
    print(render_json(scores) if as_json else render_table(scores))


def print_scores(record: dict[str, Any]) -> None:
    """ROUGE of one model, a line a measure."""
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        low, high = record[f"{name}_interval"]
        print(f"{name:10} {record[name]:.4f}  [{low:.4f}, {high:.4f}]")
    print(f"{record['n_examples']:,} dialogues, {record['mean_words']:.1f} words each")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave the process with its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    sys.exit(run(words, debug=len(words) < len(given)))


def run(words: list[str], debug: bool) -> int:
    """The exit status of a command line.

    Raises:
        Exception: a fault that is not the user's; Python prints its traceback and ends with status 1.
    """
    return exit_status(partial(invoke, typer.main.get_command(app), words), debug)
