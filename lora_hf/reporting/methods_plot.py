"""The study of methods as one picture: ROUGE-1 with its intervals, and the weights that it took."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_hf.reporting.comparison_plot import COLORS, DPI

OTHER = "#6d8a96"
INCHES = 0.36
"""Height of a line."""
EDGE = "#333333"
RIGHT_EDGE = ("axes fraction", "data")


def draw_methods(study: dict[str, Any], file: Path) -> None:
    """Write a PNG, 1350 pixels wide: a line a variant, scores with 95 % intervals left, weights right."""
    names = study["order"]
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 1.5 + INCHES * len(names)), layout="constrained")
        scores, weights = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_scores(scores, study)
        _draw_weights(weights, study)
        scores.set_yticks(range(len(names)), names)
        scores.invert_yaxis()  # the first on top
        for axes in (scores, weights):
            axes.grid(axis="y", color="#eeeeee")
            axes.set_axisbelow(True)
        record = study["variants"]["lora"]
        figure.suptitle(
            f"{record['base_model']}: methods side by side, {record['n_examples']:,} test dialogues",
            x=0.01,
            ha="left",
        )
        figure.savefig(file, dpi=DPI)


def _draw_scores(axes: Axes, study: dict[str, Any]) -> None:
    """A point with its interval for each variant, its figure at the right; a dashed line at plain LoRA's."""
    for place, name in enumerate(study["order"]):
        value, (low, high) = study["variants"][name]["rouge1"], study["intervals"][name]["rouge1"]
        reach = [[max(value - low, 0)], [max(high - value, 0)]]  # rounding may put an end on the other side
        axes.errorbar(value, place, xerr=reach, fmt="o", color=color_of(name), ecolor=EDGE, capsize=3, lw=1)
        axes.annotate(f"{value:.3f}", (1, place), xycoords=RIGHT_EDGE, ha="right", va="center")
    axes.axvline(
        study["variants"]["lora"]["rouge1"], color=COLORS["lora"], linestyle="dashed", lw=1, zorder=0
    )
    ends = [end for of in study["intervals"].values() for end in of["rouge1"]]
    room = max(max(ends) - min(ends), 0.02)
    axes.set_xlim(min(ends) - 0.05 * room, max(ends) + 0.18 * room)  # to the right: the figures
    axes.set_xlabel("ROUGE-1, with its 95 % interval")


def _draw_weights(axes: Axes, study: dict[str, Any]) -> None:
    """The number of weights that train, points on a logarithmic axis: a bar has no length there."""
    counts = [study["variants"][name]["trainable_parameters"] for name in study["order"]]
    for place, (name, count) in enumerate(zip(study["order"], counts, strict=True)):
        if count:
            axes.plot(count, place, "o", color=color_of(name))
        axes.annotate(f"{count:,}", (1, place), xycoords=RIGHT_EDGE, ha="right", va="center")
    axes.set_xscale("log")
    trained = [count for count in counts if count] or [1]
    axes.set_xlim(min(trained) / 3, max(trained) * 100)  # to the right: the figures
    axes.set_xlabel("weights trained")
    axes.tick_params(left=False, labelleft=False)


def color_of(name: str) -> str:
    """The comparison's colors for what it has too, one for all else."""
    return COLORS.get(name, OTHER)
