"""A sweep as a picture: scores and loss along its first axis, a line a combination of the others."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_hf.reporting.charts import Draw
from lora_hf.reporting.comparison_plot import DPI
from lora_hf.reporting.sweep_table import loss_of
from lora_hf.reporting.tables import Record

COLORS = ("#33658a", "#e07a3f", "#4c9f70", "#b565a7", "#c9a227", "#3aa6a6")


def sweep_charts(sweep: Record) -> dict[str, Draw]:
    """The two halves of the picture, for a page."""

    def scores(axes: Axes, report: Any) -> None:
        draw_scores(axes, sweep)
        if len(sweep["series"]) > 1:
            axes.legend(loc="best")

    return {f"ROUGE-1 along {sweep['axis']}": scores, "Loss": lambda axes, report: draw_losses(axes, sweep)}


def draw_sweep(sweep: Record, file: Path) -> None:
    """Write a PNG, 1350 pixels wide: ROUGE-1 with its intervals, and the loss, along the first axis."""
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        scores, losses = figure.subplots(1, 2)
        for axes, draw in ((scores, draw_scores), (losses, draw_losses)):
            draw(axes, sweep)
        handles, labels = scores.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        record = sweep["variants"][sweep["best"]]
        title = f"{record['base_model']}: {sweep['axis']}, {record['n_examples']:,} test dialogues"
        figure.suptitle(title, x=0.01, ha="left")
        figure.savefig(file, dpi=DPI)


def draw_scores(axes: Axes, sweep: Record) -> None:
    """ROUGE-1 with its intervals, the plateau's beginning as a ring, and the base as a dashed line."""
    for number, (label, series) in enumerate(sweep["series"].items()):
        color, places = COLORS[number % len(COLORS)], _places(axes, sweep, series)
        values = [sweep["variants"][name]["rouge1"] for name in series["runs"]]
        ends = [sweep["intervals"][name]["rouge1"] for name in series["runs"]]
        reach = [[max(v - low, 0) for v, (low, _) in zip(values, ends, strict=True)]]
        reach += [[max(high - v, 0) for v, (_, high) in zip(values, ends, strict=True)]]
        axes.errorbar(
            places,
            values,
            reach,
            fmt="o-",
            color=color,
            capsize=3,
            lw=1.6,
            elinewidth=0.8,
            label=label or None,
        )
        at = series["values"].index(series["plateau"])
        axes.plot(places[at], values[at], "o", ms=13, mfc="none", mec=color, mew=1.5)
    if "base" in sweep["variants"]:
        axes.axhline(
            sweep["variants"]["base"]["rouge1"], color="#888888", linestyle="dashed", lw=1, label="base"
        )
    axes.set_xlabel(f"{sweep['axis']} (ring: no larger value is better)")
    axes.set_ylabel("ROUGE-1, with its 95 % interval")


def draw_losses(axes: Axes, sweep: Record) -> None:
    """The loss of each run."""
    for number, series in enumerate(sweep["series"].values()):
        found = [loss_of(sweep["variants"][name]) for name in series["runs"]]
        heights = [float("nan") if value is None else value for value in found]
        axes.plot(_places(axes, sweep, series), heights, "o-", color=COLORS[number % len(COLORS)], lw=1.6)
    axes.set_xlabel(sweep["axis"])
    axes.set_ylabel("loss on the validation split")


def _places(axes: Axes, sweep: Record, series: Record) -> list[Any]:
    """Where each run stands: by its value if all are numbers above 0, else side by side."""
    every = list(dict.fromkeys(value for s in sweep["series"].values() for value in s["values"]))
    if all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in every):
        axes.set_xscale("log", base=2)
        if len(every) <= 10:
            axes.set_xticks(sorted(every), [f"{value:g}" for value in sorted(every)])
            axes.minorticks_off()
        return list(series["values"])
    axes.set_xticks(range(len(every)), [str(value) for value in every])
    return [every.index(value) for value in series["values"]]
