"""Figures of runs: the picture of a comparison as PNG, and the charts of its page as SVG.

Both are panels drawn by the same function, `render`. In an SVG, text stays text, and its color is the page's
own, light or dark.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from lora_hf.reporting.comparison_table import last_loss, variant_labels
from lora_hf.reporting.tables import ROUGE_LABELS
from lora_hf.run_files import RougeName
from lora_hf.run_records import Comparison, Interval, Prediction, Series, variants_of

COLORS = {"base": "#9aa5b1", "full": "#33658a", "lora": "#e07a3f"}
MORE_COLORS = ("#4c9f70", "#b565a7", "#c9a227", "#3aa6a6", "#d1495b", "#7d6bb0", "#8a9a5b", "#a9746e")
OTHER_VARIANT = "#6d8a96"
SERIES_COLORS = (COLORS["full"], COLORS["lora"], *MORE_COLORS[:4])
EDGE = "#333333"
PAGE_INK = "#010203"
"""Stands for the page's text color while Matplotlib draws."""
BAR_SCORES: tuple[RougeName, ...] = ("rouge1", "rouge2", "rougeL")
BAR_WIDTH = 0.26
DPI = 150
CHART_INCHES = (4.6, 3.1)
"""On a phone, where a chart fills the width, its text is still readable."""
ROW_INCHES = 0.36
"""Height of a variant in the picture of methods."""
DOT_OPACITY, DOT_SIZE = (0.25, 0.9), (3.5, 8.0)
"""Opacity and size of a point where there are many dialogues, and where there are few."""
MAX_INNER_LEGEND, LEGEND_ROW_INCHES = 5, 0.16
"""With more variants the legend is below the chart; height of a row there."""
ROUGE1_AXIS = "ROUGE-1, with its 95 % interval"

Draw = Callable[[Axes], None]
STYLE: dict[str, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
PAGE_STYLE: dict[str, Any] = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), PAGE_INK
) | {
    "svg.fonttype": "none",
    "axes.grid": True,
    "grid.color": "#888888",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Report:
    """Everything that a page shows; mappings are by variant, in the order of the table."""

    title: str
    lead: str
    lines: list[list[str]]
    """The table with its header."""
    notes: list[str]
    facts: dict[str, str]
    configs: dict[str, str]
    comparison: Comparison
    labels: dict[str, str]
    rows: dict[str, list[Prediction]]
    """Those of the first seed."""
    rouge1: dict[str, list[float]]
    """By dialogue."""


def render(
    panels: Sequence[Draw],
    inches: tuple[float, float],
    file: Path | None = None,
    *,
    title: str = "",
    ratios: Sequence[float] | None = None,
    sharey: bool = False,
    legend: bool = False,
) -> str:
    """Draw panels side by side, as a PNG file or as SVG.

    Args:
        panels: each draws on its axes.
        inches: width and height.
        file: PNG to write; None returns SVG.
        title: above the panels of a PNG; the accessible name of an SVG.
        ratios: of the panels' widths.
        sharey: whether the panels share their y axis.
        legend: whether one legend, of the first panel's entries, is drawn below all panels.
    """
    page: dict[str, Any] = PAGE_STYLE | {"svg.hashsalt": title} if file is None else {}  # equal bytes
    settings: Any = STYLE | page
    with rc_context(settings):
        figure = Figure(
            figsize=inches, layout="constrained"
        )  # without pyplot, which looks for a window system
        all_axes = figure.subplots(1, len(panels), sharey=sharey, width_ratios=ratios, squeeze=False)[0]
        for axes, draw in zip(all_axes, panels, strict=True):
            draw(axes)
        if legend:
            handles, labels = all_axes[0].get_legend_handles_labels()
            if labels:
                figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        if file is not None:
            if title:
                figure.suptitle(title, x=0.01, ha="left")
            figure.savefig(file, dpi=DPI, format="png")
            return ""
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue().replace(PAGE_INK, "currentColor")
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def draw_picture(comparison: Comparison, file: Path) -> None:
    """Write the PNG of a comparison (1200 x 675 pixels), a study of methods or a sweep (1350 wide)."""
    if "arms" in comparison:
        render([partial(_bars, comparison)], (8, 4.5), file, legend=True)
        return
    variants = variants_of(comparison)
    if "series" in comparison:
        best = variants[comparison["best"]]
        title = f"{best['base_model']}: {comparison['axis']}, {best['n_examples']:,} test dialogues"
        panels = [_sweep_scores(comparison), _sweep_losses(comparison)]
        render(panels, (9, 3.8), file, title=title, legend=True)
        return
    lora = variants["lora"]
    title = f"{lora['base_model']}: methods side by side, {lora['n_examples']:,} test dialogues"
    panels = [partial(_variant_scores, comparison), partial(_variant_weights, comparison)]
    height = 1.5 + ROW_INCHES * len(comparison["order"])
    render(panels, (9, height), file, title=title, ratios=(3, 2), sharey=True)


def charts(report: Report) -> dict[str, str]:
    """Return the charts of a page that there are figures for: title -> SVG."""
    comparison = report.comparison
    panels: dict[str, Draw] = {}
    if "series" in comparison:
        panels[f"ROUGE-1 along {comparison['axis']}"] = _sweep_scores(comparison, legend=True)
        panels["Loss"] = _sweep_losses(comparison)
    panels["ROUGE-1 against the weights trained"] = partial(_scores_by_weights, report)
    for key, curve in CURVES.items():
        if logged(comparison, key):
            panels[curve.title] = partial(_curves, report, key)
    panels["Words per summary"] = partial(_lengths, report)
    panels["ROUGE-1 of each test dialogue"] = partial(_dialogues, report)
    return {title: render([draw], CHART_INCHES, title=title) for title, draw in panels.items()}


@dataclass(frozen=True)
class Curve:
    """A chart of what the Trainer logs."""

    title: str
    label: str
    field: str
    """The config field that makes the Trainer log it."""


CURVES = {
    "loss": Curve("Training loss over steps", "loss", "training.logging_steps"),
    "eval_rouge1": Curve(
        "ROUGE-1 on the validation split over steps", ROUGE_LABELS["rouge1"], "training.eval_strategy"
    ),
}
"""By key in the Trainer's log."""


def missing_curves(comparison: Comparison) -> str:
    """Return which curves are not among the charts, and why; empty if all are there."""
    if missing := [curve for key, curve in CURVES.items() if not logged(comparison, key)]:
        if not any(result["trainable_parameters"] for result in variants_of(comparison).values()):
            return "Nothing was trained, so there are no curves over steps."
        return (
            "; ".join(f"{curve.title}: fewer than two values logged ({curve.field})" for curve in missing)
            + "."
        )
    return ""


def logged(comparison: Comparison, key: str) -> dict[str, list[tuple[float, float]]]:
    """Return (step, value) of what the Trainer logged under a key, by variant; of the first seed."""
    found = {}
    for name, result in variants_of(comparison).items():
        log = result.get("runs", [result])[0].get("log", [])
        points = [(entry["step"], entry[key]) for entry in log if key in entry and "step" in entry]
        if len(points) > 1:  # one point is not a curve
            found[name] = points
    return found


def color_of(labels: Mapping[str, str], name: str) -> str:
    """Return a variant's color: fixed for base, full and LoRA, others in turn."""
    others = [other for other in labels if other not in COLORS]
    return COLORS[name] if name in COLORS else MORE_COLORS[others.index(name) % len(MORE_COLORS)]


def error_bars(values: Sequence[float], intervals: Sequence[Interval]) -> list[list[float]]:
    """Return the reach of each interval below and above its value; never negative in spite of rounding."""
    below = [max(value - low, 0) for value, (low, _) in zip(values, intervals, strict=True)]
    return [below, [max(high - value, 0) for value, (_, high) in zip(values, intervals, strict=True)]]


def _bars(comparison: Comparison, axes: Axes) -> None:
    """Three scores of each variant with their intervals; dashed lines for the best trivial summary."""
    variants = comparison["arms"]
    for number, (name, label) in enumerate(variant_labels(variants).items()):
        result, intervals = variants[name], comparison["intervals"][name]
        values = [result[score] for score in BAR_SCORES]
        reach = error_bars(values, [intervals[score] for score in BAR_SCORES])
        share = result["trainable_parameters"] / result["total_parameters"]
        label += f" ({share:.1%} of the weights)" if name == "lora" else ""
        places = [place + (number - 1) * BAR_WIDTH for place in range(len(BAR_SCORES))]
        axes.bar(places, values, BAR_WIDTH * 0.94, color=COLORS[name], label=label)
        axes.errorbar(places, values, reach, fmt="none", ecolor=EDGE, capsize=3, linewidth=1)
        for place, value, above in zip(places, values, reach[1], strict=True):
            at = (place, value + above)
            axes.annotate(f"{value:.3f}", at, (0, 4), textcoords="offset points", ha="center")
    for place, score in enumerate(BAR_SCORES):
        best = max(scores[score] for scores in comparison["trivial"].values())
        label = "" if place else "best trivial summary (first lines)"  # one entry in the legend
        edges = (place - 1.6 * BAR_WIDTH, place + 1.6 * BAR_WIDTH)
        axes.hlines(best, *edges, colors="#555555", linestyles="dashed", label=label)
    axes.set_xticks(range(len(BAR_SCORES)), [ROUGE_LABELS[score] for score in BAR_SCORES])
    axes.set_ylabel("F1, 0 to 1")
    axes.set_ylim(0, min(1.0, axes.get_ylim()[1] * 1.12))
    lora = variants["lora"]
    axes.set_title(f"{lora['base_model']}: ROUGE on {lora['n_examples']:,} test dialogues", loc="left")


def _variant_scores(comparison: Comparison, axes: Axes) -> None:
    """A row per variant: a point with its interval, its value at the right; a dashed line at plain LoRA's."""
    variants, order = comparison["variants"], comparison["order"]
    for place, name in enumerate(order):
        value, interval = variants[name]["rouge1"], comparison["intervals"][name]["rouge1"]
        reach, color = error_bars([value], [interval]), COLORS.get(name, OTHER_VARIANT)
        axes.errorbar(value, place, xerr=reach, fmt="o", color=color, ecolor=EDGE, capsize=3, lw=1)
        _annotate_row(axes, place, f"{value:.3f}")
    axes.axvline(variants["lora"]["rouge1"], color=COLORS["lora"], linestyle="dashed", lw=1, zorder=0)
    ends = [end for intervals in comparison["intervals"].values() for end in intervals["rouge1"]]
    room = max(max(ends) - min(ends), 0.02)
    axes.set_xlim(min(ends) - 0.05 * room, max(ends) + 0.18 * room)  # room for the values at the right
    axes.set_xlabel(ROUGE1_AXIS)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()  # the first on top
    _light_rows(axes)


def _variant_weights(comparison: Comparison, axes: Axes) -> None:
    """The number of trained weights: points on a logarithmic axis, where a bar has no length."""
    counts = {name: comparison["variants"][name]["trainable_parameters"] for name in comparison["order"]}
    for place, (name, count) in enumerate(counts.items()):
        if count:
            axes.plot(count, place, "o", color=COLORS.get(name, OTHER_VARIANT))
        _annotate_row(axes, place, f"{count:,}")
    axes.set_xscale("log")
    trained = [count for count in counts.values() if count] or [1]
    axes.set_xlim(min(trained) / 3, max(trained) * 100)  # room for the counts at the right
    axes.set_xlabel("weights trained")
    axes.tick_params(left=False, labelleft=False)
    _light_rows(axes)


def _annotate_row(axes: Axes, place: float, text: str) -> None:
    axes.annotate(text, (1, place), xycoords=("axes fraction", "data"), ha="right", va="center")


def _light_rows(axes: Axes) -> None:
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)


def _sweep_scores(comparison: Comparison, legend: bool = False) -> Draw:
    """ROUGE-1 with its intervals, a ring at the plateau's beginning, and the base as a dashed line."""
    variants = comparison["variants"]

    def draw(axes: Axes) -> None:
        for number, (label, series) in enumerate(comparison["series"].items()):
            color, places = SERIES_COLORS[number % len(SERIES_COLORS)], _places(axes, comparison, series)
            values = [variants[name]["rouge1"] for name in series["runs"]]
            reach = error_bars(values, [comparison["intervals"][name]["rouge1"] for name in series["runs"]])
            line: Any = {"fmt": "o-", "color": color, "capsize": 3, "lw": 1.6, "elinewidth": 0.8}
            axes.errorbar(places, values, reach, label=label or None, **line)
            at = series["values"].index(series["plateau"])
            axes.plot(places[at], values[at], "o", ms=13, mfc="none", mec=color, mew=1.5)
        if "base" in variants:
            level: Any = {"color": "#888888", "linestyle": "dashed", "lw": 1, "label": "base"}
            axes.axhline(variants["base"]["rouge1"], **level)
        axes.set_xlabel(f"{comparison['axis']} (ring: no larger value is better)")
        axes.set_ylabel(ROUGE1_AXIS)
        if legend and len(comparison["series"]) > 1:
            axes.legend(loc="best")

    return draw


def _sweep_losses(comparison: Comparison) -> Draw:
    """The last loss of each variant along the first axis."""

    def draw(axes: Axes) -> None:
        for number, series in enumerate(comparison["series"].values()):
            found = [last_loss(comparison["variants"][name]) for name in series["runs"]]
            heights = [float("nan") if value is None else value for value in found]
            color = SERIES_COLORS[number % len(SERIES_COLORS)]
            axes.plot(_places(axes, comparison, series), heights, "o-", color=color, lw=1.6)
        axes.set_xlabel(comparison["axis"])
        axes.set_ylabel("loss on the validation split")

    return draw


def _places(axes: Axes, comparison: Comparison, series: Series) -> list[Any]:
    """Return the x of each run: its value if all values are positive numbers, otherwise its rank."""
    every = list(dict.fromkeys(value for s in comparison["series"].values() for value in s["values"]))
    if all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in every):
        axes.set_xscale("log", base=2)
        if len(every) <= 10:
            axes.set_xticks(sorted(every), [f"{value:g}" for value in sorted(every)])
            axes.minorticks_off()
        return list(series["values"])
    axes.set_xticks(range(len(every)), [str(value) for value in every])
    return [every.index(value) for value in series["values"]]


def _scores_by_weights(report: Report, axes: Axes) -> None:
    """Points with their intervals; a dashed line for a variant without training."""
    for name, label in report.labels.items():
        result, color = variants_of(report.comparison)[name], color_of(report.labels, name)
        value, count = result["rouge1"], result["trainable_parameters"]
        if not count:
            axes.axhline(value, color=color, linestyle="dashed", label=label)
            continue
        reach = error_bars([value], [report.comparison["intervals"][name]["rouge1"]])
        bar: Any = {"fmt": "o", "color": color, "ecolor": PAGE_INK, "elinewidth": 0.8, "capsize": 3}
        axes.errorbar(count, value, reach, label=label, **bar)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())  # its numbers would overlap
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel("weights trained")
    axes.set_ylabel(ROUGE_LABELS["rouge1"])
    _legend(axes, report)


def _curves(report: Report, key: str, axes: Axes) -> None:
    curves = logged(report.comparison, key)
    for name in (name for name in report.labels if name in curves):
        steps, values = zip(*curves[name], strict=True)
        axes.plot(steps, values, color=color_of(report.labels, name), label=report.labels[name])
    axes.set_xlabel("step")
    axes.set_ylabel(CURVES[key].label)
    _legend(axes, report)


def _lengths(report: Report, axes: Axes) -> None:
    """Histograms as lines, with the references filled; the longest 1 % count as the longest bin."""
    references = [len(text.split()) for row in next(iter(report.rows.values())) for text in row["references"]]
    words = {name: [len(row["prediction"].split()) for row in rows] for name, rows in report.rows.items()}
    end = (
        max(1, *(sorted(counts)[int(0.99 * (len(counts) - 1))] for counts in [references, *words.values()]))
        + 1
    )
    bins = [end * i / 25 for i in range(26)]

    def histogram(counts: list[int], **style: Any) -> None:
        axes.hist([min(count, end) for count in counts], bins, density=True, **style)

    histogram(references, color="#999999", alpha=0.4, label="people")
    for name, counts in words.items():
        color = color_of(report.labels, name)
        histogram(counts, histtype="step", lw=1.6, color=color, label=report.labels[name])
    axes.set_xlabel("words")
    axes.set_yticks([])
    axes.set_ylabel("share")
    _legend(axes, report)


def _dialogues(report: Report, axes: Axes) -> None:
    """One dot per dialogue in a band per variant, with the median; the height in the band means nothing."""
    for place, name in enumerate(report.labels):
        values = report.rouge1[name]
        heights = [place + ((i * 0.618034) % 1 - 0.5) * 0.7 for i in range(len(values))]  # spread evenly
        opacity, size = dots(len(values))
        axes.plot(values, heights, ".", color=color_of(report.labels, name), ms=size, alpha=opacity, mew=0)
        axes.plot([median(values)] * 2, [place - 0.4, place + 0.4], color=PAGE_INK, lw=1.8)
    axes.set_yticks(range(len(report.labels)), list(report.labels.values()))
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{ROUGE_LABELS['rouge1']}; the line is the median")


def dots(n: int) -> tuple[float, float]:
    """Return opacity and size of n dots: few are seen one by one, many as a cloud."""
    (least, most), (small, large) = DOT_OPACITY, DOT_SIZE
    return min(max(6 / n**0.5, least), most), min(max(36 / n**0.5, small), large)


def _legend(axes: Axes, report: Report) -> None:
    """Draw the legend in the chart, or for many variants below it."""
    if len(report.labels) <= MAX_INNER_LEGEND:
        axes.legend(loc="best")
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    handles, labels = axes.get_legend_handles_labels()
    figure.set_figheight(CHART_INCHES[1] + LEGEND_ROW_INCHES * math.ceil(len(labels) / 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7)
