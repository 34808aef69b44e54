"""Options and output that several commands share."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_hf.run_records import RunResult, interval_of, score_of

SHIPPED = Path(__file__).parents[1] / "configs"


def complete_config(incomplete: str) -> list[str]:
    """Return the shipped configs, and the YAML files of this folder, whose names begin so.

    Without one, the shell completes file names.
    """
    names = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    here = sorted(str(file) for file in Path().glob("*.y*ml"))
    return [name for name in [*names, *here] if name.startswith(incomplete)]


def complete_override(incomplete: str) -> list[str]:
    """Complete the key of a config, `lora.` to `lora.r=`, from the schema in the package."""
    if not incomplete:  # the shell completes file names
        return []
    schema = json.loads((SHIPPED / "schema.json").read_text(encoding="utf-8"))
    return [f"{key}=" for key in _keys(schema, schema) if key.startswith(incomplete)]


def _keys(schema: Mapping[str, Any], part: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, field in part["properties"].items():
        parts = [field, *field.get("anyOf", ())]
        names = [one["$ref"].split("/")[-1] for one in parts if "$ref" in one]
        sections = [schema["$defs"][name] for name in names if "properties" in schema["$defs"][name]]
        for section in sections:
            yield from _keys(schema, section, f"{prefix}{name}.")
        if not sections:
            yield prefix + name


Config = Annotated[
    Path,
    typer.Option(
        "--config",
        help="YAML file, or the name of a shipped config, such as quickstart.",
        autocompletion=complete_config,
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="int8 stores the linear layers of the model in int8, for a CPU: faster, but texts can differ.",
        show_default=False,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="ctranslate2 converts the model in memory, each adapter merged, and runs it in int8 or "
        "--quantization float32: the fastest for few texts on a CPU. Default: torch, or that of an exported "
        "folder.",
        show_default=False,
    ),
]
MaybeConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file, or the name of a shipped config, such as quickstart.",
        autocompletion=complete_config,
        show_default=False,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL DATA | KEY.SUB=VALUE",
        help="Without --config: a base model (a folder, a name on the Hub, or embedded) and your texts (a "
        "file, a folder, or a name on the Hub). In both cases: config fields to set, such as lora.r=8.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="Columns of the input and of the target, such as text,title. Default: found by name.",
    ),
]
OutputDir = Annotated[
    str | None, typer.Option("--output", "-o", help="Run directory; the same as output_dir=DIR.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.SUB=VALUE",
        help="Config fields to set, such as lora.r=8. They replace the values in the config.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
GenerationOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="generation.KEY=VALUE",
        help="Generation settings, such as generation.num_beams=4. Default: as the adapter was scored.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
PredictOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Settings for reading the file, such as data.encoding=cp1252, and for generation, such as "
        "generation.num_beams=4. Generation defaults to the settings the adapter was scored with. For an "
        "adapter that records none: data.prompt and data.target_language.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
ReadingOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="data.KEY=VALUE",
        help="Settings for reading the file, such as data.encoding=cp1252.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
DataWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA | data.KEY=VALUE",
        help="Your texts: a file (csv, jsonl, parquet, ...), a folder, or a name on the Hub; and config "
        "fields that say how they are read, such as data.delimiter=';'.",
        show_default=False,
        autocompletion=complete_override,
    ),
]
Adapter = Annotated[
    str, typer.Option("--adapter", help="Folder of an adapter or a run, or USER/NAME@REVISION on the Hub.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Whole model, used instead of an adapter: a merged, fully fine-tuned or exported folder, a run, "
        "or USER/NAME on the Hub.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", help="Base model to load the adapter on. Default: the one that the adapter names."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def print_scores(scores: RunResult) -> None:
    """Print the scores of one model, one line each."""
    from lora_hf.evaluation.metrics import Scoring

    scoring = Scoring.of_result(scores)
    for score in scoring.scores:
        low, high = map(score.text, interval_of(scores, score.name))
        print(f"{score.name:10} {score.text(score_of(scores, score.name))}  [{low}, {high}]")
    print(f"{scoring.task.counted(scores['n_examples'])}; {scores['mean_words']:.1f} words per prediction")
    for name, of in scores.get("retention", {}).items():
        if (kept := of["kept"]) is not None:
            interval = "[{:.0%}, {:.0%}]".format(*of["kept_interval"])
            print(f"keeps {kept:.0%} {interval} of the base's score on {name}")
    if tokenizer := scores.get("rouge_tokenizer"):
        print(f"tokenizer of ROUGE: {tokenizer}")


def print_report(root: Path, stem: str) -> None:
    """Print the path of a report's page, and the endings of the files beside it."""
    print(f"report: {root / stem}.html, and .md, .png and .json beside it")
