"""What several commands take, and what several print."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_hf.run_files import ROUGE_NAMES
from lora_hf.run_records import Scores, interval_of

SHIPPED = Path(__file__).parents[1] / "configs"


def complete_config(incomplete: str) -> list[str]:
    """Names of shipped configs; where there is none that begins so, the shell goes on with files."""
    names = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    return [name for name in names if incomplete and name.startswith(incomplete)]


def complete_override(incomplete: str) -> list[str]:
    """`lora.r=` of `lora.`: the keys of a config, by the schema in the package, which is at hand at once."""
    if not incomplete:  # then the shell goes on with files
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
        "--config", help="The YAML of a run, such as configs/quickstart.yaml.", autocompletion=complete_config
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", show_default=False, autocompletion=complete_override),
]
Adapter = Annotated[
    str, typer.Option("--adapter", help="A folder, or USER/NAME or USER/NAME@REVISION on the Hub.")
]
Base = Annotated[str | None, typer.Option("--base", help="The base model, if not the one the adapter names.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_scores(scores: Scores) -> None:
    """ROUGE of one model, a line a measure."""
    for name in ROUGE_NAMES:
        low, high = interval_of(scores, name)
        print(f"{name:10} {scores[name]:.4f}  [{low:.4f}, {high:.4f}]")
    print(f"{scores['n_examples']:,} dialogues, {scores['mean_words']:.1f} words each")


def print_report(root: Path, stem: str) -> None:
    """Where a report is: the page first."""
    print("report:", ", ".join(str(root / f"{stem}{end}") for end in (".html", ".md", ".png", ".json")))
