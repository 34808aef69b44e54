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

from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.words import spaced_words
from lora_hf.reporting.comparison_table import last_loss, scoring_of, variant_labels
from lora_hf.reporting.tables import Place
from lora_hf.run_records import Comparison, Interval, Prediction, Series, score_of, variants_of
from lora_hf.scores import Score

COLORS = {"base": "#7d8894", "full": "#3a7ca5", "lora": "#d9692f"}
MORE_COLORS = ("#3f8f63", "#b565a7", "#a8851a", "#2b9191", "#d1495b", "#7d6bb0", "#768650", "#a06d66")
"""Every color has a contrast of 3 at least on the page's light and on its dark background."""
OTHER_VARIANT = "#6d8a96"
SERIES_COLORS = (COLORS["full"], COLORS["lora"], *MORE_COLORS[:4])
EDGE = "#333333"
PAGE_INK = "#010203"
"""Stands for the page's text color while Matplotlib draws."""
MAX_BARS = 3
"""Scores in the picture of a comparison."""
BAR_WIDTH = 0.26
DPI = 150
CHART_INCHES = (4.6, 3.1)
"""On a phone, where a chart fills the width, its text is still readable."""
ROW_INCHES = 0.36
"""Height of a variant in the picture of methods."""
DOT_OPACITY, DOT_SIZE = (0.25, 0.9), (3.5, 8.0)
"""Opacity and size of a point where there are many examples, and where there are few."""
LEGEND_COLUMNS, LEGEND_ROW_INCHES = 4, 0.16
"""Most entries in one row of the legend below a chart, otherwise there are two in each; height of a row."""

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
    verdict: list[str]
    """Findings in words, the main one first."""
    basis: dict[str, str]
    """What the verdict rests on: data, model, seeds and so on."""
    lines: list[list[str]]
    """The table with its header."""
    best: set[Place]
    """Cells with the best value of a score."""
    notes: list[str]
    facts: dict[str, str]
    configs: dict[str, str]
    comparison: Comparison
    labels: dict[str, str]
    rows: dict[str, list[Prediction]]
    """Those of the first seed."""
    by_example: dict[str, list[float]]
    """The main score of each example."""
    scoring: Scoring


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
    variants, task = variants_of(comparison), scoring_of(comparison).task
    if "series" in comparison:
        best = variants[comparison["best"]]
        title = f"{best['base_model']}: {comparison['axis']}, {task.counted(best['n_examples'], 'test')}"
        panels = [_sweep_scores(comparison), _sweep_losses(comparison)]
        render(panels, (9, 3.8), file, title=title, legend=True)
        return
    lora = variants["lora"]
    title = f"{lora['base_model']}: methods side by side, {task.counted(lora['n_examples'], 'test')}"
    panels = [partial(_variant_scores, comparison), partial(_variant_weights, comparison)]
    height = 1.5 + ROW_INCHES * len(comparison["order"])
    render(panels, (9, height), file, title=title, ratios=(3, 2), sharey=True)


def charts(report: Report) -> dict[str, str]:
    """Return the charts of a page that there are figures for: title -> SVG."""
    comparison, task, main = report.comparison, report.scoring.task, report.scoring.main.label
    panels: dict[str, Draw] = {}
    if "series" in comparison:
        panels[f"{main} along {comparison['axis']}"] = _sweep_scores(comparison, legend=True)
        if any(last_loss(result) is not None for result in variants_of(comparison).values()):
            panels["Loss"] = _sweep_losses(comparison)
    if len(report.labels) > 1:
        panels[f"{main} against the weights trained"] = partial(_scores_by_weights, report)
    for key, curve in curves_of(report.scoring).items():
        if logged(comparison, key):
            panels[curve.title] = partial(_curves, report, key)
    panels[f"Words per {task.target}"] = partial(_lengths, report)
    panels[f"{main} of each test {task.source}"] = partial(_examples, report)
    return {title: render([draw], CHART_INCHES, title=title) for title, draw in panels.items()}


@dataclass(frozen=True)
class Curve:
    """A chart of what the Trainer logs."""

    title: str
    label: str
    remedy: str
    """How to get it, if it is missing."""


def curves_of(scoring: Scoring) -> dict[str, Curve]:
    """Return the charts of the loss and of the main score, by key in the Trainer's log."""
    main = scoring.main
    of_main = Curve(
        f"{main.label} on the validation split over steps",
        main.label,
        "set training.eval_strategy to steps or epoch, so that models are evaluated during training",
    )
    return {
        "loss": Curve(
            "Training loss over steps",
            "loss",
            "set training.logging_steps to at most half of the number of steps",
        ),
        f"eval_{main.name}": of_main,
    }


def missing_curves(comparison: Comparison) -> str:
    """Return which curves are not among the charts, and how to get them; empty if all are there."""
    curves = curves_of(scoring_of(comparison))
    if missing := [curve for key, curve in curves.items() if not logged(comparison, key)]:
        if not any(result["trainable_parameters"] for result in variants_of(comparison).values()):
            return "Nothing was trained, so there are no curves over steps."
        return " ".join(f"Not drawn: {curve.title}. To draw it, {curve.remedy}." for curve in missing)
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
    """Up to three scores of each variant with their intervals; dashed lines for the best trivial output."""
    variants, scoring = comparison["arms"], scoring_of(comparison)
    scores = bar_scores(scoring)
    for number, (name, label) in enumerate(variant_labels(variants).items()):
        result, intervals = variants[name], comparison["intervals"][name]
        values = [score_of(result, score.name) for score in scores]
        reach = error_bars(values, [intervals[score.name] for score in scores])
        share = result["trainable_parameters"] / result["total_parameters"]
        label += f" ({share:.1%} of the weights)" if name == "lora" else ""
        places = [place + (number - 1) * BAR_WIDTH for place in range(len(scores))]
        axes.bar(places, values, BAR_WIDTH * 0.94, color=COLORS[name], label=label)
        axes.errorbar(places, values, reach, fmt="none", ecolor=EDGE, capsize=3, linewidth=1)
        for place, score, value, above in zip(places, scores, values, reach[1], strict=True):
            at = (place, value + above)
            axes.annotate(score.text(value, 3), at, (0, 4), textcoords="offset points", ha="center")
    task = scoring.task
    for number, score in enumerate(scores):
        best = max(comparison["trivial"].values(), key=lambda of: score.sign * of[score.name])[score.name]  # noqa: B023
        label = "" if number else f"best trivial {task.target} ({task.trivial})"  # one entry in the legend
        edges = (number - 1.6 * BAR_WIDTH, number + 1.6 * BAR_WIDTH)
        axes.hlines(best, *edges, colors="#555555", linestyles="dashed", label=label)
    axes.set_xticks(range(len(scores)), [score.label for score in scores])
    is_rouge, top = task.metrics == ("rouge",), scoring.main.scale
    axes.set_ylabel("F1, 0 to 1" if is_rouge else f"0 to {top}")
    room = axes.get_ylim()[1] * 1.12
    axes.set_ylim(0, min(float(top), room) if all(score.higher_is_better for score in scores) else room)
    lora = variants["lora"]
    what = "ROUGE" if is_rouge else "scores"
    axes.set_title(f"{lora['base_model']}: {what} on {task.counted(lora['n_examples'], 'test')}", loc="left")


def bar_scores(scoring: Scoring) -> list[Score]:
    """Return the scores in the picture of a comparison: those on the scale of the main one, it among them."""
    main = scoring.main
    others = [score for score in scoring.scores if score.scale == main.scale and score != main]
    shown = {main.name, *(score.name for score in others[: MAX_BARS - 1])}
    return [score for score in scoring.scores if score.name in shown]


def axis_label(score: Score) -> str:
    """Return the label of an axis of a score."""
    note = "" if score.higher_is_better else ", lower is better"
    return f"{score.label}{note}, with its 95 % interval"


def _variant_scores(comparison: Comparison, axes: Axes) -> None:
    """A row per variant: a point with its interval, its value at the right; a dashed line at plain LoRA's."""
    variants, order = comparison["variants"], comparison["order"]
    main = scoring_of(comparison).main
    for place, name in enumerate(order):
        value, interval = score_of(variants[name], main.name), comparison["intervals"][name][main.name]
        reach, color = error_bars([value], [interval]), COLORS.get(name, OTHER_VARIANT)
        axes.errorbar(value, place, xerr=reach, fmt="o", color=color, ecolor=EDGE, capsize=3, lw=1)
        _annotate_row(axes, place, main.text(value, 3))
    axes.axvline(
        score_of(variants["lora"], main.name), color=COLORS["lora"], linestyle="dashed", lw=1, zorder=0
    )
    ends = [end for intervals in comparison["intervals"].values() for end in intervals[main.name]]
    room = max(max(ends) - min(ends), 0.02 * main.scale)
    axes.set_xlim(min(ends) - 0.05 * room, max(ends) + 0.18 * room)  # room for the values at the right
    axes.set_xlabel(axis_label(main))
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
    """The main score with its intervals, a ring at the plateau's beginning, and the base as a dashed line."""
    variants, main = comparison["variants"], scoring_of(comparison).main

    def draw(axes: Axes) -> None:
        for number, (label, series) in enumerate(comparison["series"].items()):
            color, places = SERIES_COLORS[number % len(SERIES_COLORS)], _places(axes, comparison, series)
            values = [score_of(variants[name], main.name) for name in series["runs"]]
            reach = error_bars(values, [comparison["intervals"][name][main.name] for name in series["runs"]])
            line: Any = {"fmt": "o-", "color": color, "capsize": 3, "lw": 1.6, "elinewidth": 0.8}
            axes.errorbar(places, values, reach, label=label or None, **line)
            at = series["values"].index(series["plateau"])
            axes.plot(places[at], values[at], "o", ms=13, mfc="none", mec=color, mew=1.5)
        if "base" in variants:
            level: Any = {"color": "#888888", "linestyle": "dashed", "lw": 1, "label": "base"}
            axes.axhline(score_of(variants["base"], main.name), **level)
        axes.set_xlabel(f"{comparison['axis']} (ring: no larger value is better)")
        axes.set_ylabel(axis_label(main))
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
    main = report.scoring.main
    for name, label in report.labels.items():
        result, color = variants_of(report.comparison)[name], color_of(report.labels, name)
        value, count = score_of(result, main.name), result["trainable_parameters"]
        if not count:
            axes.axhline(value, color=color, linestyle="dashed", label=label)
            continue
        reach = error_bars([value], [report.comparison["intervals"][name][main.name]])
        bar: Any = {"fmt": "o", "color": color, "ecolor": PAGE_INK, "elinewidth": 0.8, "capsize": 3}
        axes.errorbar(count, value, reach, label=label, **bar)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())  # its numbers would overlap
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel("weights trained")
    axes.set_ylabel(main.label)
    _legend(axes)


def _curves(report: Report, key: str, axes: Axes) -> None:
    curves = logged(report.comparison, key)
    for name in (name for name in report.labels if name in curves):
        steps, values = zip(*curves[name], strict=True)
        axes.plot(steps, values, color=color_of(report.labels, name), label=report.labels[name])
    axes.set_xlabel("step")
    axes.set_ylabel(curves_of(report.scoring)[key].label)
    _legend(axes)


def _lengths(report: Report, axes: Axes) -> None:
    """Histograms as lines, with the references filled; the longest 1 % count as the longest bin."""
    references = [
        len(spaced_words(text)) for row in next(iter(report.rows.values())) for text in row["references"]
    ]
    words = {
        name: [len(spaced_words(row["prediction"])) for row in rows] for name, rows in report.rows.items()
    }
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
    longest = max(map(max, [references, *words.values()]))
    axes.set_xlabel(f"words; the last bin holds all up to {longest}" if longest > end else "words")
    axes.set_yticks([])
    axes.set_ylabel("share")
    _legend(axes)


def _examples(report: Report, axes: Axes) -> None:
    """One dot per example in a band per variant, with the median; the height in the band means nothing."""
    for place, name in enumerate(report.labels):
        values = report.by_example[name]
        heights = [place + ((i * 0.618034) % 1 - 0.5) * 0.7 for i in range(len(values))]  # spread evenly
        opacity, size = dots(len(values))
        axes.plot(values, heights, ".", color=color_of(report.labels, name), ms=size, alpha=opacity, mew=0)
        axes.plot([median(values)] * 2, [place - 0.4, place + 0.4], color=PAGE_INK, lw=1.8)
    axes.set_yticks(range(len(report.labels)), list(report.labels.values()))
    axes.invert_yaxis()
    main = report.scoring.main
    top = max(main.scale, *(max(values) for values in report.by_example.values()))
    axes.set_xlim(-0.02 * top, 1.02 * top)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{main.label}; the line is the median")


def dots(n: int) -> tuple[float, float]:
    """Return opacity and size of n dots: few are seen one by one, many as a cloud."""
    (least, most), (small, large) = DOT_OPACITY, DOT_SIZE
    return min(max(6 / n**0.5, least), most), min(max(36 / n**0.5, small), large)


def _legend(axes: Axes) -> None:
    """Draw the legend below the chart, where it hides nothing; one variant, named in the page, needs none."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    is_one_row = len(labels) <= LEGEND_COLUMNS
    columns = LEGEND_COLUMNS if is_one_row else 2
    figure.set_figheight(CHART_INCHES[1] + LEGEND_ROW_INCHES * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9 if is_one_row else 7)
