"""Commands for trained adapters and saved predictions."""

import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, cast

import typer

from lora_hf.cli.hints import missing_config
from lora_hf.cli.next_steps import show_next, with_options
from lora_hf.cli.options import (
    Adapter,
    Base,
    Engine,
    GenerationOverrides,
    Json,
    Model,
    Overrides,
    PredictOverrides,
    Quantization,
    ReadingOverrides,
    complete_config,
    print_scores,
)
from lora_hf.errors import UserError, counted, did_you_mean
from lora_hf.run_files import ADAPTER, CONFIG, PAGE, merged_folder

EXPORTED_EXAMPLES = 200
"""Examples of a test split that `export` compares by default."""
PEFT_CONFIG = "adapter_config.json"
"""The file of a LoRA adapter's fields; other methods that train an adapter have none."""


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Output directory of a train, compare, methods or sweep command."),
    ],
) -> None:
    """Write the report of finished runs: an HTML page, a table and figures.

    Of a comparison: [dim]lora-hf report runs/quickstart[/dim]

    Of one run: [dim]lora-hf report runs/quickstart/lora[/dim]
    """
    from lora_hf.experiments.report import report as write

    files = write(run)
    print("report:", ", ".join(map(str, files)))
    show_next("report", page=next((file for file in files if file.suffix == PAGE), None))


def evaluate(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="YAML file, or the name of a shipped config, such as quickstart. Default: the config of the "
            "run that --adapter or --model is in.",
            autocompletion=complete_config,
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option(help="Folder, or USER/NAME@REVISION on the Hub. Default: the base model.")
    ] = None,
    model: Model = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder for predictions.jsonl and results.json.")
    ] = None,
    quantization: Quantization = None,
    as_json: Json = False,
) -> None:
    """Score a saved adapter, a whole model or the base model on the test split.

    A run, with its own config: [dim]lora-hf evaluate --adapter runs/quickstart/lora[/dim]

    With another config: [dim]lora-hf evaluate --config quickstart --adapter runs/quickstart/lora[/dim]

    The base model: [dim]lora-hf evaluate --config quickstart[/dim]

    An exported model: [dim]lora-hf evaluate --config quickstart --model ct2[/dim]
    """
    from lora_hf.config.load import load_config
    from lora_hf.evaluation.predictions import write_predictions
    from lora_hf.files import check_new, write_json
    from lora_hf.run_files import PREDICTIONS, RESULTS

    if output:
        check_new(output)
    if adapter and model:
        raise UserError("--adapter and --model: give one of them")
    name = adapter or model
    if config is None and not (name and Path(name).expanduser().is_dir()):
        raise UserError(missing_config("evaluate", overrides or []))
    run = load_config(config, overrides or []) if config else None
    from lora_hf.adapters.saved_adapter import SavedAdapter
    from lora_hf.saved.evaluate import evaluate as score_saved
    from lora_hf.saved.evaluate import report_unread
    from lora_hf.saved.find_adapter import find_adapter, run_directory
    from lora_hf.saved.source import find_source

    given = find_source(model) if model else find_adapter(adapter) if adapter else None
    if run is None:
        folder = run_directory(given) if isinstance(given, SavedAdapter) else given.run if given else None
        if folder is None:
            raise UserError(missing_config("evaluate", overrides or []))
        run = load_config(folder / CONFIG, overrides or [], is_recorded=True)
    report_unread(overrides or [], given, run)
    scores, rows = score_saved(run, given, quantization)
    if output:
        write_predictions(output / PREDICTIONS, rows)
        write_json(output / RESULTS, scores)
    print(json.dumps(scores)) if as_json else print_scores(scores)
    base = run.model.model_name_or_path  # what it was scored with
    is_other = isinstance(given, SavedAdapter) and given.base_model != base
    typed = with_options(adapter, base=base if is_other else None) if adapter else None
    show_next("evaluate", as_json, adapter=typed)


def predict(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Texts as csv, tsv, jsonl, json, parquet or arrow; a .txt file with one text; or - for "
            "standard input.",
        ),
    ],
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help="Folder of an adapter or a run, or USER/NAME@REVISION on the Hub."),
    ] = None,
    model: Model = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .csv, .txt (one line per text), else jsonl. Default: standard output.",
        ),
    ] = None,
    base: Base = None,
    dialogue_column: Annotated[
        str | None, typer.Option(help="Column to read. Default: as in training.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Read plain text as one dialogue per line.")] = False,
    form: Annotated[
        str | None, typer.Option("--format", help="jsonl, csv or text. Default: from the ending of --output.")
    ] = None,
    long: Annotated[
        str,
        typer.Option(
            help="Texts that are too long: cut drops their end, split summarizes them in parts and joins "
            "the summaries."
        ),
    ] = "cut",
    quantization: Quantization = None,
    engine: Engine = None,
    keep_columns: Annotated[
        bool,
        typer.Option(
            "--keep-columns",
            help="Write the columns of FILE, and the column prediction after them, in the place of id, "
            "dialogue and prediction.",
        ),
    ] = False,
    settings: PredictOverrides = None,
) -> None:
    """Generate a summary, or whatever the adapter was trained to write, for each text in a file.

    Every row of a file: [dim]lora-hf predict talks.csv --adapter runs/quickstart/lora -o summaries.csv[/dim]

    Text from a pipe: [dim]lora-hf predict - --adapter runs/quickstart/lora --format text[/dim]

    With a merged or exported folder: [dim]lora-hf predict talks.csv --model ct2 -o summaries.csv[/dim]
    """
    from lora_hf.files import check_new, whole_output

    if adapter and model:
        raise UserError("--adapter and --model: give one of them")
    if not adapter and not model:
        whole = "a whole model (merged, fully fine-tuned or exported)"
        if base:
            write = f"for {whole}, write --model {shlex.quote(base)}"
            raise UserError(
                f"--base {base!r} is the model that an adapter is loaded on: add --adapter; {write}"
            )
        raise UserError(f"give --adapter DIR, or --model DIR for {whole}")
    if output:
        check_new(output)
    from lora_hf.config.load import OF_THE_MODEL, READING, reading_fields

    column = [] if dialogue_column is None else [f"data.dialogue_column={dialogue_column}"]
    data, generation = reading_fields([*column, *(settings or [])], READING + OF_THE_MODEL)
    from lora_hf.saved import predict as saved

    known = saved.format_of(output, form)
    from lora_hf.saved.source import find_source

    source = find_source(model, base) if model else str(adapter)
    if keep_columns and known == "text":
        raise UserError("--keep-columns: text has one prediction per line; write csv or jsonl")
    rows = saved.predict(
        file, source, base, data, generation, lines, long, quantization, engine, keep_columns
    )
    text = saved.rendered(rows, known)
    if output:
        with whole_output(output) as beside:
            beside.write_text(text, encoding="utf-8")
        print(f"{output}: {counted(len(rows), 'prediction')}", file=sys.stderr)
    else:
        print(text, end="")
    is_lora = adapter and any(
        (Path(adapter) / name).is_file() for name in (f"{ADAPTER}/{PEFT_CONFIG}", PEFT_CONFIG)
    )
    is_shown = output or sys.stdout.isatty()
    show_next(
        "predict",
        mergeable=with_options(adapter, base=base) if adapter and is_shown and is_lora else None,
        merged=Path(merged_folder(adapter)) if adapter else None,
    )


def merge(
    adapter: Adapter,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    base: Base = None,
    onto: Annotated[
        str | None,
        typer.Option(
            help="Weights to merge into, on a quantized base: checkpoint, dequantized or requantized."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Read the written model again and compare it, also if it has 2 GB or more.",
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Data type of the written weights: float32, bfloat16 or float16. "
            "Default: that of the base's checkpoint."
        ),
    ] = None,
    settings: GenerationOverrides = None,
) -> None:
    """Merge an adapter into its base model and write a plain Transformers folder.

    The folder's generation_config.json has the settings that the adapter was scored with.

    From a run: [dim]lora-hf merge --adapter runs/quickstart/lora --output merged[/dim]
    """
    from lora_hf.config.load import generation_fields
    from lora_hf.saved.merge import merge as merge_adapter

    errors = merge_adapter(adapter, output, base, onto, generation_fields(settings or []), check, dtype)
    for way, error in errors.items():
        where = "" if way == "merged" else f" onto the {way} weights"
        print(f"merging{where} changes the logits of a sample by {error:.1e} (relative)")
    merged = f"the model with the adapter merged{f' onto the {onto} weights' if onto else ''}"
    print(f"{output}: {merged}; its README.md has the code that loads it")
    config = Path(adapter) / CONFIG  # of a run: its test split is compared
    named = f" --config {shlex.quote(str(config))}" if config.is_file() else ""
    ct2, onnx = (
        output.with_name(f"{output.name}-{name}") if find_spec(package) else None
        for name, package in (("ct2", "ctranslate2"), ("onnx", "onnx"))
    )
    show_next("merge", whole=output, exportable=f"{shlex.quote(str(output))}{named}", ct2=ct2, onnx=onnx)


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run, an adapter, a merged folder, or USER/NAME on the Hub."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
    to: Annotated[str, typer.Option("--to", help="Library to run it with: onnx or ctranslate2.")] = "onnx",
    quantization: Annotated[
        str, typer.Option(help="Type of the weights: float32 or int8; with ctranslate2 also int8_bfloat16.")
    ] = "float32",
    base: Base = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Config whose test split is compared. Default: the config of the model's run."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, help="Largest number of test examples to compare.")
    ] = EXPORTED_EXAMPLES,
    allow_loss: Annotated[
        bool,
        typer.Option(
            "--allow-loss",
            help="Keep an export whose score falls by more than 0.005 and more than by chance.",
        ),
    ] = False,
) -> None:
    """Export a trained model to CTranslate2 or ONNX, and compare what it writes.

    The adapter is merged first. The comparison is on the test split of the run, with the model in float32.

    For a CPU: [dim]lora-hf export runs/quickstart/lora --to ctranslate2 --quantization int8 -o ct2[/dim]

    After a merge: [dim]lora-hf export merged --output onnx[/dim]
    """
    from lora_hf.config.load import load_config
    from lora_hf.models.exported import ENGINES, Engine
    from lora_hf.reporting.tables import bytes_cell
    from lora_hf.saved.export import export as write
    from lora_hf.saved.source import find_source

    if to not in ENGINES:
        raise UserError(f"--to {to!r} must be one of {list(ENGINES)}.{did_you_mean(to, ENGINES)}")
    run = load_config(config) if config else None
    engine = cast(Engine, to)
    source = find_source(model, base, "MODEL")
    found = write(source, output, engine, quantization, run, examples, allow_loss)
    size = bytes_cell(sum(file.stat().st_size for file in output.iterdir()))
    print(f"{output}: {quantization} for {to}, {size}; {found}")
    show_next("export", whole=output)


def truncate(
    adapter: Adapter,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New folder for the truncated adapters and the figures.")
    ],
    config: Annotated[
        Path | None, typer.Option(help="Config of the test split. Default: the config of the adapter's run.")
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(help="Ranks, such as 1,2,4. Default: the powers of two below the adapter's rank."),
    ] = None,
    base: Base = None,
) -> None:
    """Truncate a trained adapter to smaller ranks and score each.

    To the powers of two: [dim]lora-hf truncate --adapter runs/quickstart/lora --output cut[/dim]
    """
    wanted = None if ranks is None else ranks.replace(" ", "").split(",")
    if wanted is not None and not all(word.isdecimal() for word in wanted):
        raise UserError(f"--ranks {ranks!r} must be whole numbers separated by commas, such as 1,2,4")
    from rich.console import Console

    from lora_hf.config.load import load_config
    from lora_hf.experiments import rank_truncation as truncation
    from lora_hf.reporting.rank_truncation import truncation_terminal
    from lora_hf.saved.find_adapter import config_of_run, find_adapter

    saved = find_adapter(adapter)
    run = load_config(config) if config else config_of_run(saved)
    numbers = None if wanted is None else [int(word) for word in wanted]
    Console().print(truncation_terminal(truncation.truncate(saved, output, run, numbers, base)))
    print("report:", ", ".join(str(output / name) for name in truncation.REPORT))
    smallest = min(output.glob("r*"), key=lambda folder: int(folder.name[1:]), default=None)
    show_next("truncate", adapter=with_options(smallest, base=base) if smallest else None)


def score(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Predictions as csv, tsv, jsonl, json, parquet or arrow, or as .txt, one per line.",
        ),
    ],
    prediction: Annotated[
        str | None, typer.Option(help="Column of the predictions. Default: prediction.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the references, or a .txt with one per line; repeat it for several. "
            "Default: references."
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column whose equal values mark the rows of one dialogue.")
    ] = None,
    group_size: Annotated[int | None, typer.Option(help="Number of consecutive rows per dialogue.")] = None,
    metrics: Annotated[
        str, typer.Option(help="Metrics, such as bleu,chrf or squad, or Python files; by commas.")
    ] = "rouge",
    language: Annotated[
        str | None, typer.Option(help="Language of the references, such as de, if it is known.")
    ] = None,
    as_json: Json = False,
    settings: ReadingOverrides = None,
) -> None:
    """Compute ROUGE or other scores of saved predictions, with 95 % intervals over dialogues.

    Two columns of a file: [dim]lora-hf score saved.csv --prediction summary --reference human[/dim]

    Two text files: [dim]lora-hf score predictions.txt --reference references.txt --metrics bleu,chrf[/dim]
    """
    from lora_hf.config.load import OF_FILES, reading_fields
    from lora_hf.data.opened import Form
    from lora_hf.evaluation.score_file import render_json, render_table, score_file

    columns = "; name its columns by --prediction, --reference and --group"
    data, _ = reading_fields(settings or [], OF_FILES, ("data",), columns)
    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    scores = score_file(file, prediction, reference, group, group_size, Form.of(data), names, language)
    print(render_json(scores) if as_json else render_table(scores, names))
