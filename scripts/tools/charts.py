"""Draw the charts of the README and the documentation from the tables of the documentation.

python scripts/tools/charts.py

Each chart is written twice to docs/charts, for a light and a dark page. The tables are the only source of
the figures, but for the growth of costs, whose points are in docs/charts/costs.json. After one of them has
changed, run this script.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

DOCS = Path(__file__).parents[2] / "docs"
CHARTS = DOCS / "charts"
NUMBER = re.compile(r"[-+−]?\d[\d,]*\.?\d*")


@dataclass(frozen=True)
class Scheme:
    """Colors of one page: contrast of text and marks with the page is at least 4.5 and 3."""

    name: str
    ink: str
    grid: str
    base: str
    full: str
    lora: str
    other: str


SCHEMES = (
    Scheme("light", "#1f2328", "#d1d9e0", "#6e7781", "#33658a", "#c4571a", "#3b7d5c"),
    Scheme("dark", "#e6edf3", "#3d444d", "#9aa5b1", "#6fa8d6", "#f2935c", "#6dbd8f"),
)
Draw = Callable[[list[Axes], Scheme], None]


def table(page: str, header: str) -> list[list[str]]:
    """Return the rows below the first table line of a page that begins with `header`, without emphasis."""
    lines = (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines()
    try:
        first = next(i for i, line in enumerate(lines) if line.startswith(header))
    except StopIteration:
        raise SystemExit(f"docs/{page}.md has no table that begins with {header!r}") from None
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("**", "") for cell in line.strip("|").split("|")])
    return rows


def numbers(cell: str) -> list[float]:
    """Return the numbers of a cell: a value and, where it has one, its interval."""
    return [float(text.replace(",", "").replace("−", "-")) for text in NUMBER.findall(cell)]


def row(rows: list[list[str]], name: str) -> list[str]:
    return next(cells for cells in rows if cells[0].startswith(name))


def against_peft(panels: list[Axes], scheme: Scheme) -> None:
    """Time of a training step, its memory, and time of generation, of this package and of the usual one."""
    rows = table("performance", "| comparison | ratio [spread]")
    step = numbers(row(rows, "training step, PEFT")[1])[0]
    ours, theirs = numbers(row(rows, "our peak memory of a step ÷ PEFT's with its defaults")[1])[1:3]
    summaries = numbers(row(rows, "24 summaries, float32")[1])[0]
    shown = (
        ("time of a training step", (1, step), ("1×", f"{step:.1f}×"), "PEFT"),
        ("memory of a step, MiB", (ours, theirs), (f"{ours:,.0f}", f"{theirs:,.0f}"), "PEFT"),
        ("time for 24 summaries", (1, summaries), ("1×", f"{summaries:.1f}×"), "Transformers"),
    )
    for axes, (title, values, texts, other) in zip(panels, shown, strict=True):
        bars = axes.barh((1, 0), values, color=(scheme.lora, scheme.base), height=0.7)
        axes.bar_label(bars, texts, padding=4, fontweight="bold")
        axes.set_yticks((1, 0), ("lora_hf", other))
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.set_xlim(0, max(values) * 1.4)
        axes.tick_params(axis="both", length=0)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)


def comparison(panels: list[Axes], scheme: Scheme) -> None:
    """ROUGE-1 of base, full fine-tuning and LoRA with intervals."""
    values = row(table("quickstart", "|  | base | full | LoRA |"), "ROUGE-1")[1:]
    _bars(
        panels[0],
        scheme,
        ["base model", "full fine-tuning", "LoRA"],
        [numbers(value) for value in values],
        [scheme.base, scheme.full, scheme.lora],
        2,
    )
    panels[0].set_xlabel("ROUGE-1 with its 95 % interval")
    panels[0].set_xlim(0, 1)


def benchmark(panels: list[Axes], scheme: Scheme) -> None:
    """Each ratio of the benchmark with its spread."""
    rows = table("performance", "| comparison | ratio [spread]")
    names = {
        "training step, PEFT": "training step, PEFT's defaults",
        "the same with batches": "training step, PEFT, similar lengths",
        "24 summaries, float32": "24 summaries, float32",
        "12 summaries, float32": "12 summaries, four beams",
        "24 summaries, bfloat16": "24 summaries, bfloat16",
        "loading the base shape": "loading and injecting, PEFT",
    }
    values = [numbers(row(rows, start)[1]) for start in names]
    _bars(panels[0], scheme, list(names.values()), [of[:3] for of in values], [scheme.full] * len(names), 2)
    panels[0].axvline(1, color=scheme.ink, linewidth=1)
    panels[0].set_xlabel("their time ÷ ours, with percentiles 5 and 95")


def methods(panels: list[Axes], scheme: Scheme) -> None:
    """ROUGE-1 and trained weights of each method."""
    rows = table("methods", "|  | ROUGE-1 [95 %] | − lora")
    scores, weights = panels
    colors = {"base": scheme.base, "full": scheme.full, "lora": scheme.lora}
    for place, cells in enumerate(reversed(rows)):
        color = colors.get(cells[0], scheme.other)
        value, low, high = numbers(cells[1])
        scores.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=3)
        if count := numbers(cells[4])[0]:
            weights.plot(count, place, "o", color=color)
            weights.annotate(
                f"{count:,.0f}", (count, place), (7, -3.5), textcoords="offset points", fontsize=9
            )
    scores.set_yticks(range(len(rows)), [cells[0] for cells in reversed(rows)])
    scores.set_xlabel("ROUGE-1 with its 95 % interval")
    weights.set_xscale("log")
    weights.set_xlim(1e3, 2e7)
    weights.set_xlabel("weights trained")
    weights.tick_params(axis="y", length=0)


def rank_study(panels: list[Axes], scheme: Scheme) -> None:
    """ROUGE-1 and validation loss against the rank, for both scalings."""
    rows = [cells for cells in table("rank_study", "| r | alpha / r: ROUGE-1") if cells[0] != "base"]
    ranks = [int(cells[0]) for cells in rows]
    for offset, column, label, color in (
        (0.96, 1, "alpha / r", scheme.lora),
        (1.04, 3, "alpha / sqrt(r)", scheme.full),
    ):
        _line(
            panels[0], [r * offset for r in ranks], [numbers(cells[column]) for cells in rows], color, label
        )
        panels[1].plot(ranks, [float(cells[column + 1]) for cells in rows], "o-", color=color, label=label)
    panels[0].set_ylabel("ROUGE-1 with its 95 % interval")
    panels[1].set_ylabel("validation loss")
    for axes in panels:
        _ranks(axes, ranks)
    panels[0].legend(loc="lower right")


def truncation(panels: list[Axes], scheme: Scheme) -> None:
    """ROUGE-1 and the energy that is kept, of one adapter truncated to smaller ranks."""
    rows = table("rank_study", "| rank | ROUGE-1 [95 %] | − whole")
    ranks = [int(cells[0]) for cells in rows]
    _line(panels[0], ranks, [numbers(cells[1]) for cells in rows], scheme.lora)
    panels[1].plot(ranks, [numbers(cells[4])[0] for cells in rows], "o-", color=scheme.other)
    panels[0].set_ylabel("ROUGE-1 with its 95 % interval")
    panels[1].set_ylabel("energy of the updates kept, %")
    panels[1].set_ylim(0, 105)
    for axes in panels:
        _ranks(axes, ranks)


COST_AXES = {
    "length": "tokens per dialogue",
    "batch": "dialogues per step",
    "r": "rank",
    "adapters": "loaded adapters, one of which trains",
    "shape": "size of FLAN-T5",
}
"""What varies in costs.json, and the title of its axis."""
COST_SIZE = (8.4, 3)


def costs(record: Mapping[str, Any], setting: str, panels: list[Axes], scheme: Scheme) -> None:
    """Time and memory of a training step against one setting, on logarithmic axes, beside PEFT's."""
    points = record["points"][setting]
    values = [point["value"] for point in points]
    places = values if setting != "shape" else [2**i for i in range(len(values))]
    shown = (("seconds", 1, "seconds per step"), ("mib_with_weights", 1024, "peak memory with weights, GiB"))
    for axes, (key, unit, label) in zip(panels, shown, strict=True):
        for side, color, name in (("ours", scheme.lora, "lora_hf"), ("peer", scheme.base, "PEFT")):
            heights = [point[side][key] / unit for point in points]
            axes.plot(places, heights, "o-", color=color, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        low, high = axes.get_ylim()
        wider = max(1.0, 8 / (high / low)) ** 0.5  # at least a factor of 8 is shown
        axes.set_ylim(low / wider, high * wider)
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.set_xticks(places, [str(value) for value in values])
        axes.minorticks_off()
        axes.set_xlabel(COST_AXES[setting])
        axes.set_title(label, loc="left", fontsize=10)
        axes.grid(axis="x", visible=False)
    panels[1].legend(loc="best")


def costs_of_docs(setting: str, panels: list[Axes], scheme: Scheme) -> None:
    """Draw `costs` of the documentation's points."""
    costs(json.loads((CHARTS / "costs.json").read_text(encoding="utf-8")), setting, panels, scheme)


def _bars(
    axes: Axes,
    scheme: Scheme,
    names: list[str],
    values: list[list[float]],
    colors: list[str],
    digits: int = 3,
) -> None:
    """Draw horizontal bars with intervals; each value has its number behind the interval."""
    for place, (value, low, high) in enumerate(reversed(values)):
        axes.barh(place, value, color=colors[-1 - place], height=0.6)
        axes.errorbar(
            value, place, xerr=[[value - low], [high - value]], color=scheme.ink, capsize=3, linewidth=1.2
        )
        axes.annotate(f"{value:.{digits}f}", (high, place), (6, -4), textcoords="offset points")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(value[2] for value in values) * 1.12)


def _line(
    axes: Axes, x: list[float] | list[int], values: list[list[float]], color: str, label: str = ""
) -> None:
    below = [value - low for value, low, _ in values]
    above = [high - value for value, _, high in values]
    axes.errorbar(
        x, [of[0] for of in values], yerr=[below, above], fmt="o-", color=color, capsize=3, label=label
    )


def _ranks(axes: Axes, ranks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rank")


CHARTED: dict[str, tuple[Draw, int, tuple[float, float]]] = {
    "against_peft": (against_peft, 3, (9.2, 1.5)),
    "quickstart": (comparison, 1, (7, 2.1)),
    "bench": (benchmark, 1, (8, 3.2)),
    "methods": (methods, 2, (8.4, 4.8)),
    "rank_study": (rank_study, 2, (8.4, 3.4)),
    "truncation": (truncation, 2, (8.4, 3.2)),
    **{f"cost_{name}": (partial(costs_of_docs, name), 2, COST_SIZE) for name in COST_AXES},
}
"""name -> function, number of panels, size in inches."""


def draw(
    name: str, scheme: Scheme, function: Draw, panels: int, inches: tuple[float, float], folder: Path = CHARTS
) -> None:
    """Write one chart in one scheme as SVG with a transparent background."""
    style = {
        "font.size": 10,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": name != "against_peft",
        "axes.axisbelow": True,
        "grid.color": scheme.grid,
        "legend.frameon": False,
    } | dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        scheme.ink,
    )
    file = folder / f"{name}-{scheme.name}.svg"
    with rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        shares = name == "methods"
        ratios = (3, 2) if shares else None
        all_axes = figure.subplots(1, panels, sharey=shares, width_ratios=ratios, squeeze=False)[0]
        function(list(all_axes), scheme)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def main() -> None:
    if sys.argv[1:]:
        sys.exit(__doc__)
    CHARTS.mkdir(exist_ok=True)
    for name, chart in CHARTED.items():
        for scheme in SCHEMES:
            draw(name, scheme, *chart)


if __name__ == "__main__":
    main()
