"""A report's charts as SVG for a page: text stays text, and the ink is the page's own, light or dark."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from statistics import median
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from lora_hf.reporting.comparison_plot import COLORS
from lora_hf.reporting.tables import ROUGE_LABELS

INK = "#010203"
"""What stands for the page's text color while Matplotlib draws."""
MORE_COLORS = ("#4c9f70", "#b565a7", "#c9a227", "#3aa6a6", "#d1495b", "#7d6bb0", "#8a9a5b", "#a9746e")
INCHES = (4.6, 3.1)
"""A chart's size: on a phone, where it fills the width, its text is still read."""
OPACITY, SIZE = (0.25, 0.9), (3.5, 8.0)
"""Of the dots: at many dialogues, and at few."""
LABELLED = 5
"""With more groups than these the legend stands below the chart."""
ROW = 0.16
"""Inches of a row of it."""
Report = Mapping[str, Any]
Draw = Callable[[Axes, Report], None]


class Curve(NamedTuple):
    """A chart of what the Trainer logs."""

    title: str
    label: str
    field: str
    """What has it logged."""


CURVES = {
    "loss": Curve("Training loss over steps", "loss", "training.logging_steps"),
    "eval_rouge1": Curve(
        "ROUGE-1 on the validation split over steps", ROUGE_LABELS["rouge1"], "training.eval_strategy"
    ),
}
"""By the key in the Trainer's log."""


def charts(report: Report) -> dict[str, str]:
    """Title -> SVG, of what the report has figures for.

    Args:
        report: `labels`, `records`, `intervals`, `rows` and `scores`, each by group; see `runs.report`; and
            `charts`, title -> what draws it, which come first.
    """
    drawn: dict[str, Draw] = report["charts"] | {"ROUGE-1 against the weights trained": _weights}
    drawn |= {curve.title: _curves(key, curve.label) for key, curve in CURVES.items() if _logged(report, key)}
    drawn |= {"Words of a summary": _lengths, "ROUGE-1 of each test dialogue": _dialogues}
    return {title: _svg(title, draw, report) for title, draw in drawn.items()}


def undrawn(report: Report) -> str:
    """Which curves are not among the charts, and why, in a line; nothing where all are."""
    if missing := [curve for key, curve in CURVES.items() if not _logged(report, key)]:
        if not any(record["trainable_parameters"] for record in report["records"].values()):
            return "Nothing was trained, and so there are no curves over steps."
        return "; ".join(f"{curve.title}: logged less than twice ({curve.field})" for curve in missing) + "."
    return ""


def color_of(report: Report, group: str) -> str:
    """The comparison's own colors for its arms, others in turn."""
    others = [name for name in report["labels"] if name not in COLORS]
    return COLORS[group] if group in COLORS else MORE_COLORS[others.index(group) % len(MORE_COLORS)]


def _svg(title: str, draw: Draw, report: Report) -> str:
    with _style(title):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.subplots()
        draw(axes, report)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    drawn = out.getvalue().replace(INK, "currentColor")
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: Any = dict.fromkeys(ink, INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,  # equal reports are equal bytes, and no two charts share an id
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#888888",
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with rc_context(settings):
        yield


def _logged(report: Report, key: str) -> dict[str, list[tuple[float, float]]]:
    """By group, (step, value) of what the Trainer logged under a key; of several seeds the first's."""
    found = {}
    for group, record in report["records"].items():
        log = record.get("runs", [record])[0].get("log", [])
        points = [(entry["step"], entry[key]) for entry in log if key in entry and "step" in entry]
        if len(points) > 1:  # of one there is no curve
            found[group] = points
    return found


def _weights(axes: Axes, report: Report) -> None:
    """Points with their intervals; what trains nothing is a line."""
    for group, label in report["labels"].items():
        record, color = report["records"][group], color_of(report, group)
        value, ends, count = (
            record["rouge1"],
            report["intervals"][group]["rouge1"],
            record["trainable_parameters"],
        )
        if not count:
            axes.axhline(value, color=color, linestyle="dashed", label=label)
            continue
        reach = [[max(value - ends[0], 0)], [max(ends[1] - value, 0)]]
        axes.errorbar(
            count, value, reach, fmt="o", color=color, ecolor=INK, elinewidth=0.8, capsize=3, label=label
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())  # its numbers would stand over each other
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel("weights trained")
    axes.set_ylabel(ROUGE_LABELS["rouge1"])
    _legend(axes, report)


def _curves(key: str, label: str) -> Draw:
    def draw(axes: Axes, report: Report) -> None:
        for group, points in _logged(report, key).items():
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=color_of(report, group), label=report["labels"][group])
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        _legend(axes, report)

    return draw


def _lengths(axes: Axes, report: Report) -> None:
    """Histograms as lines, the references' filled."""
    rows = next(iter(report["rows"].values()))
    people = [len(text.split()) for row in rows for text in row["references"]]
    of = {g: [len(row["prediction"].split()) for row in rows] for g, rows in report["rows"].items()}
    most = _most([people, *of.values()])
    bins = [most * i / 25 for i in range(26)]
    axes.hist(_within(people, most), bins, density=True, color="#999999", alpha=0.4, label="people")
    for group, words in of.items():
        color = color_of(report, group)
        axes.hist(
            _within(words, most),
            bins,
            density=True,
            histtype="step",
            lw=1.6,
            color=color,
            label=report["labels"][group],
        )
    axes.set_xlabel("words")
    axes.set_yticks([])
    axes.set_ylabel("share")
    _legend(axes, report)


def _most(counts: Sequence[Sequence[int]]) -> int:
    """The longest that is drawn: a few that never end would else press all others together."""
    return max(1, *(sorted(words)[int(0.99 * (len(words) - 1))] for words in counts)) + 1


def _within(words: Sequence[int], most: int) -> list[int]:
    return [min(count, most) for count in words]


def _dialogues(axes: Axes, report: Report) -> None:
    """A dot a dialogue, a line of dots a group, its median marked; the height of a dot says nothing."""
    names = list(report["labels"])
    for place, group in enumerate(names):
        values = report["scores"][group]["rouge1"]
        heights = [place + ((i * 0.618034) % 1 - 0.5) * 0.7 for i in range(len(values))]  # spread evenly
        opacity, size = dots(len(values))
        axes.plot(values, heights, ".", color=color_of(report, group), ms=size, alpha=opacity, mew=0)
        axes.plot([median(values)] * 2, [place - 0.4, place + 0.4], color=INK, lw=1.8)
    axes.set_yticks(range(len(names)), [report["labels"][name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{ROUGE_LABELS['rouge1']}; the line is the median")


def dots(n: int) -> tuple[float, float]:
    """Opacity and size, by how many there are: few are seen one by one, many as a cloud."""
    (least, most), (small, large) = OPACITY, SIZE
    return min(max(6 / n**0.5, least), most), min(max(36 / n**0.5, small), large)


def _legend(axes: Axes, report: Report) -> None:
    """In the chart, or of many groups below it, where it hides nothing."""
    if len(report["labels"]) <= LABELLED:
        axes.legend(loc="best")
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    handles, labels = axes.get_legend_handles_labels()
    figure.set_figheight(INCHES[1] + ROW * math.ceil(len(labels) / 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7)
