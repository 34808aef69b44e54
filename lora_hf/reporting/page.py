"""A report as one self-contained HTML page: no network, no other file."""

import json
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lora_hf.reporting.figures import Report, charts, missing_curves
from lora_hf.reporting.highlight import marked
from lora_hf.scores import Score

TEMPLATES = Path(__file__).parents[1] / "assets" / "report"
MAX_EXAMPLES = 2000
"""Test examples that a page lists: some 4 MB."""
MAX_PAIRED = 4
"""With more variants than these, gaps are listed only against one of them."""


def report_page(report: Report) -> str:
    """Return the HTML of a report."""
    listed = _examples(report)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    task, main = report.scoring.task, report.scoring.main
    data = {
        "examples": listed,
        "orders": _orders(report.labels, main),
        "labels": report.labels,
        "digits": 3 if main.scale == 1 else 1,
    }
    return environment.get_template("page.html.j2").render(
        title=report.title,
        verdict=report.verdict,
        basis=report.basis,
        lines=report.lines,
        best=report.best,
        notes=report.notes,
        facts=report.facts,
        configs=report.configs,
        charts=charts(report),
        undrawn=missing_curves(report.comparison),
        examples=listed,
        task=task,
        main=main,
        orders=data["orders"],
        left_out=len(next(iter(report.rows.values()))) - len(listed),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),  # a text cannot end the script
    )


def _orders(labels: Mapping[str, str], main: Score) -> list[dict[str, str]]:
    """Return the sort keys for examples: the test set's order, the sizes of gaps, the scores."""
    names = list(labels)
    pairs = [(of, less) for less, of in permutations(names, 2) if names.index(of) > names.index(less)]
    if len(names) > MAX_PAIRED:
        pairs = [(of, "lora" if "lora" in names else names[0]) for of in names]
    gaps = [
        {"label": f"largest gap: |{labels[a]} − {labels[b]}|", "of": a, "less": b}
        for a, b in reversed(pairs)
        if a != b
    ]
    scores = [{"label": f"{main.label} of {label}", "of": name} for name, label in labels.items()]
    return [{"label": "as in the test set"}, *gaps, *scores]


def _examples(report: Report) -> list[dict[str, Any]]:
    """Return each test example with every variant's output and score."""
    found, language = [], report.scoring.language
    for place, row in enumerate(next(iter(report.rows.values()))[:MAX_EXAMPLES]):
        text = {name: rows[place]["prediction"] for name, rows in report.rows.items()}
        found.append(
            {
                "id": str(row["id"]),
                "source": row["dialogue"],
                "references": row["references"],
                "text": text,
                "html": {name: marked(words, row["references"], language) for name, words in text.items()},
                "score": {name: round(values[place], 4) for name, values in report.by_example.items()},
            }
        )
    return found
