"""A report as one HTML page that needs nothing else: no network, no other file."""

import json
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lora_hf.reporting.charts import charts, undrawn
from lora_hf.reporting.highlight import marked

TEMPLATES = Path(__file__).parents[1] / "assets" / "report"
MOST = 2000
"""Dialogues that a page lists: some 4 MB."""
GAPS = 4
"""With more groups than these, gaps are listed against one of them only."""


def report_page(report: Mapping[str, Any]) -> str:
    """The page of a report.

    Args:
        report: plain values: `title`, `lead`, `lines` (a table with its header), `notes`, `command`, `facts`
            (name -> value), `configs` (group -> YAML), and by group `labels`, `records`, `intervals`, `rows`
            (those of predictions.jsonl) and `scores` (ROUGE name -> one value a dialogue).
    """
    listed = _dialogues(report)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    data = {"dialogues": listed, "orders": _orders(report["labels"]), "labels": report["labels"]}
    return environment.get_template("page.html.j2").render(
        **{name: report[name] for name in ("title", "lead", "lines", "notes", "command", "facts", "configs")},
        charts=charts(report),
        undrawn=undrawn(report),
        dialogues=listed,
        orders=data["orders"],
        left_out=len(next(iter(report["rows"].values()))) - len(listed),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),  # a text cannot end the script
    )


def _orders(labels: Mapping[str, str]) -> list[dict[str, str]]:
    """What the dialogues can be sorted by: gaps first, then each group's score, then the test set's order."""
    names = list(labels)
    pairs = [(of, less) for less, of in permutations(names, 2) if names.index(of) > names.index(less)]
    if len(names) > GAPS:
        pairs = [(of, "lora" if "lora" in names else names[0]) for of in names]
    gaps = [{"label": f"{labels[a]} − {labels[b]}", "of": a, "less": b} for a, b in reversed(pairs) if a != b]
    scores = [{"label": f"ROUGE-1 of {label}", "of": name} for name, label in labels.items()]
    return [*gaps, *scores, {"label": "as in the test set"}]


def _dialogues(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each test dialogue with what every group wrote and its score."""
    rows, scores = report["rows"], report["scores"]
    found = []
    for place, row in enumerate(next(iter(rows.values()))[:MOST]):
        text = {group: of[place]["prediction"] for group, of in rows.items()}
        found.append(
            {
                "id": str(row["id"]),
                "dialogue": row["dialogue"],
                "references": row["references"],
                "text": text,
                "html": {group: marked(words, row["references"]) for group, words in text.items()},
                "rouge1": {group: round(of["rouge1"][place], 4) for group, of in scores.items()},
            }
        )
    return found
