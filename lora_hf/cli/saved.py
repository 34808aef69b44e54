"""The commands for what was trained: adapters, and saved predictions."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lora_hf.cli.options import Adapter, Base, Config, Json, Overrides, print_scores


def report(
    run: Annotated[
        Path, typer.Argument(help="The output_dir of a train, compare, methods or sweep command.")
    ],
) -> None:
    """Write the report of runs that are done: a page, a table, figures.

    [dim]lora-hf report runs/quickstart[/dim]
    """
    from lora_hf.experiments.report import report as write

    print("report:", ", ".join(map(str, write(run))))


def evaluate(
    config: Config,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option(help="A folder, or USER/NAME or USER/NAME@REVISION on the Hub; none: base.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for predictions.jsonl and results.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a saved adapter, or the base model, on the test split.

    [dim]lora-hf evaluate --config configs/quickstart.yaml --adapter runs/quickstart/lora/adapter[/dim]
    """
    from lora_hf.config.load import load_config
    from lora_hf.evaluation.evaluate import write_predictions
    from lora_hf.files import check_new, write_json
    from lora_hf.run_files import PREDICTIONS, RESULTS

    if output:
        check_new(output)
    run = load_config(config, overrides or [])
    from lora_hf.saved.adapter import find_adapter
    from lora_hf.saved.evaluate import evaluate as score_adapter

    scores, rows = score_adapter(run, find_adapter(adapter) if adapter else None)
    if output:
        write_predictions(output / PREDICTIONS, rows)
        write_json(output / RESULTS, scores)
    print(json.dumps(scores)) if as_json else print_scores(scores)


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
    from lora_hf.saved import predict as saved

    lines = saved.as_lines(saved.predict(file, adapter, base, dialogue_column))
    write_text(output, lines) if output else print(lines, end="")


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
    from lora_hf.saved.merge import merge as merge_adapter

    errors = merge_adapter(adapter, output, base, onto)
    for way, error in errors.items():
        print(f"{way}: logits moved by {error:.1e} of their size on a sample")
    print(f"{output}: {onto or 'merged'}")


def export(
    model: Annotated[str, typer.Argument(help="A folder that merge has written, or a name on the Hub.")],
    output: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Write a model as ONNX: encoder and decoder with its cache, checked by onnxruntime.

    [dim]lora-hf export merged --output onnx[/dim]
    """
    from lora_hf.saved.export import export as write

    n = write(model, output)
    print(f"{output}: encoder.onnx, decoder.onnx; {n} of {n} sample summaries have the model's own tokens")


def truncate(
    adapter: Adapter,
    output: Annotated[Path, typer.Option(help="A new folder, for the cut adapters and the figures.")],
    config: Annotated[
        Path | None, typer.Option(help="Whose test split is used; by default that of the adapter's run.")
    ] = None,
    ranks: Annotated[
        str | None, typer.Option(help="Such as 1,2,4; by default the powers of two below its own.")
    ] = None,
    base: Base = None,
) -> None:
    """Cut a trained adapter to smaller ranks and score each: which rank was needed?

    [dim]lora-hf truncate --adapter runs/quickstart/lora/adapter --output cut[/dim]
    """
    from lora_hf.errors import UserError

    wanted = None if ranks is None else ranks.replace(" ", "").split(",")
    if wanted is not None and not all(word.isdecimal() for word in wanted):
        raise UserError(f"--ranks {ranks!r} is no list of whole numbers such as 1,2,4")
    from rich.console import Console

    from lora_hf.config.load import load_config
    from lora_hf.experiments import rank_truncation as truncation
    from lora_hf.reporting.rank_truncation import truncation_terminal
    from lora_hf.saved.adapter import config_of_run, find_adapter

    saved = find_adapter(adapter)
    run = load_config(config) if config else config_of_run(saved)
    numbers = None if wanted is None else [int(word) for word in wanted]
    Console().print(truncation_terminal(truncation.truncate(saved, output, run, numbers, base)))
    print("report:", ", ".join(str(output / name) for name in truncation.REPORT))


def score(
    file: Annotated[Path, typer.Argument(help="Saved predictions: csv, jsonl, json or parquet.")],
    prediction: Annotated[str, typer.Option(help="The column of predictions.")],
    reference: Annotated[str, typer.Option(help="The column of references.")],
    group: Annotated[str | None, typer.Option(help="Rows alike in this column are one dialogue.")] = None,
    group_size: Annotated[int | None, typer.Option(help="So many rows in turn are one dialogue.")] = None,
    as_json: Json = False,
) -> None:
    """ROUGE of saved predictions, with 95 % intervals over dialogues.

    [dim]lora-hf score saved.csv --prediction summary --reference human --group-size 3[/dim]
    """
    from lora_hf.evaluation.score_file import render_json, render_table, score_file

    scores = score_file(file, prediction, reference, group, group_size)
    print(render_json(scores) if as_json else render_table(scores))
