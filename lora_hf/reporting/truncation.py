"""An adapter cut to smaller ranks, as a table and a picture: scores, and each layer's spectrum."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from lora_hf.reporting.plots import COLORS, DPI
from lora_hf.reporting.table import Record, markdown_table, terminal_table

HEADER = ["rank", "ROUGE-1 [95 %]", "− whole", "p", "energy kept"]
STACKS = {"encoder": "#33658a", "EncDecAttention": "#4c9f70", "decoder": "#e07a3f"}
"""Part of a layer's name -> color, the first that is in it; others are gray."""
LABELS = {"EncDecAttention": "decoder, to the source"}


def truncation_lines(record: Record) -> list[list[str]]:
    """A header, then one line a rank, the whole adapter's last."""
    return [
        HEADER,
        *(_line(rank, of) for rank, of in sorted(record["ranks"].items(), key=lambda x: int(x[0]))),
    ]


def _line(rank: str, of: Record) -> list[str]:
    low, high = of["rouge1_interval"]
    test = of.get("against_whole")
    return [
        rank,
        f"{of['rouge1']:.4f} [{low:.4f}, {high:.4f}]",
        f"{test['difference']:+.4f}" if test else "–",
        f"{test['p_value']:.2g}" if test else "–",
        f"{of['energy']:.1%}",
    ]


def truncation_notes(record: Record) -> list[str]:
    """What stands below the table."""
    n = next(iter(record["ranks"].values()))["n_examples"]
    return [
        f"Needed: rank {record['needed']} of {record['whole']} is the least that is not worse than the whole "
        "(ROUGE-1 paired by dialogue, p < 0.05 for all ranks together).",
        "Energy: the kept share of the updates' squared singular values, over all layers.",
        f"{n:,} test dialogues; 95 % intervals by bootstrap over dialogues.",
    ]


def truncation_markdown(record: Record) -> str:
    """The table and its notes as Markdown."""
    notes = "\n".join(f"- {note}" for note in truncation_notes(record))
    return f"# One adapter at smaller ranks\n\n{markdown_table(truncation_lines(record))}\n\n{notes}\n"


def truncation_terminal(record: Record) -> Table:
    """The table for a terminal."""
    return terminal_table(truncation_lines(record), truncation_notes(record))


def draw_truncation(record: Record, file: Path) -> None:
    """Write a PNG, 1350 pixels wide: ROUGE-1 by rank with intervals, and every layer's spectrum."""
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        scores, spectrum = figure.subplots(1, 2)
        _draw_scores(scores, record)
        _draw_spectra(spectrum, record)
        figure.savefig(file, dpi=DPI)


def _draw_scores(axes: Axes, record: Record) -> None:
    ranks = sorted(map(int, record["ranks"]))
    of = [record["ranks"][str(rank)] for rank in ranks]
    values = [x["rouge1"] for x in of]
    ends = [x["rouge1_interval"] for x in of]
    reach = [[max(v - low, 0) for v, (low, _) in zip(values, ends, strict=True)]]
    reach += [[max(high - v, 0) for v, (_, high) in zip(values, ends, strict=True)]]
    axes.errorbar(
        ranks, values, reach, fmt="o-", color=COLORS["lora"], ecolor="#333333", elinewidth=0.8, capsize=3
    )
    needed = record["needed"]
    axes.plot(needed, values[ranks.index(needed)], "o", ms=13, mfc="none", mec=COLORS["lora"], mew=1.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, list(map(str, ranks)))
    axes.minorticks_off()
    axes.set_xlabel("rank (ring: the least that is not worse)")
    axes.set_ylabel("ROUGE-1, with its 95 % interval")


def _draw_spectra(axes: Axes, record: Record) -> None:
    """Each layer's singular values over its largest."""
    told: set[str] = set()
    for path, values in record["spectra"].items():
        stack = next((name for name in STACKS if name in path), "other")
        label = LABELS.get(stack, stack)
        shares = [value / values[0] if values[0] else 0.0 for value in values]
        shown: dict[str, Any] = {} if label in told else {"label": label}
        told.add(label)
        axes.plot(
            range(1, len(values) + 1), shares, color=STACKS.get(stack, "#888888"), lw=0.9, alpha=0.7, **shown
        )
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("singular direction of a layer's update")
    axes.set_ylabel("singular value over the layer's largest")
    axes.legend(frameon=False)
