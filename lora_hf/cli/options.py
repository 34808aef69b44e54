"""What several commands take, and what several print."""

from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path, typer.Option("--config", help="The YAML of a run, such as configs/quickstart.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", show_default=False)]
Adapter = Annotated[
    str, typer.Option("--adapter", help="A folder, or USER/NAME or USER/NAME@REVISION on the Hub.")
]
Base = Annotated[str | None, typer.Option("--base", help="The base model, if not the one the adapter names.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_scores(record: dict[str, Any]) -> None:
    """ROUGE of one model, a line a measure."""
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        low, high = record[f"{name}_interval"]
        print(f"{name:10} {record[name]:.4f}  [{low:.4f}, {high:.4f}]")
    print(f"{record['n_examples']:,} dialogues, {record['mean_words']:.1f} words each")


def print_report(root: Path, stem: str) -> None:
    """Where a report is: the page first."""
    print("report:", ", ".join(str(root / f"{stem}{end}") for end in (".html", ".md", ".png", ".json")))
