"""The comparison as one picture: ROUGE of the arms with their intervals, and what the trivial ones reach."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_hf.reporting.comparison_table import ARMS
from lora_hf.reporting.tables import ROUGE_LABELS
from lora_hf.run_files import RougeName

COLORS = {"base": "#9aa5b1", "full": "#33658a", "lora": "#e07a3f"}
SHOWN: tuple[RougeName, ...] = ("rouge1", "rouge2", "rougeL")
WIDTH = 0.26
DPI = 150


def draw_comparison(comparison: dict[str, Any], file: Path) -> None:
    """Write a PNG, 1200 x 675 pixels: bars with 95 % intervals, dashed lines for trivial summaries."""
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")  # without pyplot: no window system is asked
        axes = figure.subplots()
        for number, method in enumerate(ARMS):
            _draw_arm(axes, comparison, method, (number - 1) * WIDTH)
        _draw_trivial(axes, comparison["trivial"])
        axes.set_xticks(range(len(SHOWN)), [ROUGE_LABELS[name] for name in SHOWN])
        axes.set_ylabel("F1, 0 to 1")
        axes.set_ylim(0, min(1.0, axes.get_ylim()[1] * 1.12))
        n = comparison["arms"]["lora"]["n_examples"]
        axes.set_title(
            f"{comparison['arms']['lora']['base_model']}: ROUGE on {n:,} test dialogues", loc="left"
        )
        figure.legend(loc="outside lower center", ncols=len(ARMS) + 1, frameon=False)
        figure.savefig(file, dpi=DPI)


def _draw_arm(axes: Axes, comparison: dict[str, Any], method: str, shift: float) -> None:
    """Bars with their intervals; an end that rounding puts on the bar's other side counts as the bar's."""
    arm, intervals = comparison["arms"][method], comparison["intervals"][method]
    values = [arm[name] for name in SHOWN]
    below = [max(value - intervals[name][0], 0) for name, value in zip(SHOWN, values, strict=True)]
    above = [max(intervals[name][1] - value, 0) for name, value in zip(SHOWN, values, strict=True)]
    share = arm["trainable_parameters"] / arm["total_parameters"]
    label = ARMS[method] + (f" ({share:.1%} of the weights)" if method == "lora" else "")
    places = [number + shift for number in range(len(SHOWN))]
    axes.bar(places, values, WIDTH * 0.94, color=COLORS[method], label=label)
    axes.errorbar(places, values, [below, above], fmt="none", ecolor="#333333", capsize=3, linewidth=1)
    for place, value, rise in zip(places, values, above, strict=True):
        axes.annotate(f"{value:.3f}", (place, value + rise), (0, 4), textcoords="offset points", ha="center")


def _draw_trivial(axes: Axes, trivial: dict[str, dict[str, float]]) -> None:
    """A short dashed line over each group at the best of the trivial summaries."""
    for number, name in enumerate(SHOWN):
        best = max(trivial, key=lambda kind: trivial[kind][name])
        label = "" if number else "best trivial summary (first lines)"  # one entry in the legend
        edges = (number - 1.6 * WIDTH, number + 1.6 * WIDTH)
        axes.hlines(trivial[best][name], *edges, colors="#555555", linestyles="dashed", label=label)
