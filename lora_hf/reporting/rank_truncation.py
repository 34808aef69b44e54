"""Table and picture of an adapter truncated to smaller ranks: scores, and each layer's spectrum."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from lora_hf.evaluation.metrics import Scoring
from lora_hf.reporting.figures import COLORS, DPI, MORE_COLORS, axis_label, error_bars
from lora_hf.reporting.tables import markdown_table, terminal_table
from lora_hf.run_records import RankResult, TruncationRecord, interval_of, score_of
from lora_hf.scores import Score

PANELS = {
    "EncDecAttention": "decoder, to the source",
    "encoder_attn": "decoder, to the source",
    "encoder": "encoder",
    "decoder": "decoder",
}
"""Part of a layer's name -> its panel; the first match counts."""
OTHER = "other layers"
PALETTE = (COLORS["full"], *MORE_COLORS)
"""Colors of the projections."""
Spectra = Mapping[str, Sequence[float]]


def truncation_lines(record: TruncationRecord) -> list[list[str]]:
    """Return a header, then one line per rank, the full adapter's last."""
    main = Scoring.of_result(record).main
    return [
        ["rank", f"{main.label} [95 %]", "− whole", "p", "energy kept"],
        *(_line(rank, of, main) for rank, of in sorted(record["ranks"].items(), key=lambda x: int(x[0]))),
    ]


def _line(rank: str, of: RankResult, main: Score) -> list[str]:
    low, high = map(main.text, interval_of(of, main.name))
    test = of.get("against_whole")
    return [
        rank,
        f"{main.text(score_of(of, main.name))} [{low}, {high}]",
        main.text(test["difference"], signed=True) if test else "–",
        f"{test['p_value']:.2g}" if test else "–",
        f"{of['energy']:.1%}",
    ]


def truncation_notes(record: TruncationRecord) -> list[str]:
    """Return the notes below the table."""
    n, scoring = next(iter(record["ranks"].values()))["n_examples"], Scoring.of_result(record)
    task = scoring.task
    return [
        f"Needed: rank {record['needed']} of {record['whole']} is the least that is not worse than the whole "
        f"({scoring.main.label} paired by {task.source}, p < 0.05 for all ranks together).",
        "Energy: the kept share of the updates' squared singular values, over all layers.",
        f"{task.counted(n, 'test')}; 95 % intervals by bootstrap over {task.sources}.",
    ]


def truncation_markdown(record: TruncationRecord) -> str:
    """Return the table and its notes as Markdown."""
    notes = "\n".join(f"- {note}" for note in truncation_notes(record))
    return f"# One adapter at smaller ranks\n\n{markdown_table(truncation_lines(record))}\n\n{notes}\n"


def truncation_terminal(record: TruncationRecord) -> Table:
    """Return the table for a terminal."""
    return terminal_table(truncation_lines(record), truncation_notes(record))


def draw_truncation(record: TruncationRecord, file: Path) -> None:
    """Write a PNG, 1500 pixels wide: the score by rank with intervals, and one panel of spectra per stack."""
    stacks = by_stack(record["spectra"])
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        grid = figure.add_gridspec(1, 1 + len(stacks), width_ratios=[1.6, *[1] * len(stacks)])
        _draw_scores(figure.add_subplot(grid[0]), record)
        names = list(dict.fromkeys(name for of in stacks.values() for name in of))
        colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
        panels = [figure.add_subplot(grid[1 + i]) for i in range(len(stacks))]
        for axes, (stack, of) in zip(panels, stacks.items(), strict=True):
            _draw_spectra(axes, of, colors)
            axes.set_title(stack, fontsize=9)
            axes.tick_params(labelleft=axes is panels[0])
        panels[0].set_ylabel("singular value over the layer's largest")
        figure.savefig(file, dpi=DPI)


def by_stack(spectra: Spectra) -> dict[str, dict[str, list[Sequence[float]]]]:
    """Return stack -> projection (`q`, `v`, ...) -> each layer's singular values over its largest one."""
    found: dict[str, dict[str, list[Sequence[float]]]] = {}
    for path, values in spectra.items():
        stack = next((title for part, title in PANELS.items() if part in path), OTHER)
        shares = [value / values[0] if values[0] else 0.0 for value in values]
        found.setdefault(stack, {}).setdefault(path.rpartition(".")[2], []).append(shares)
    order = ["encoder", "decoder", *PANELS.values(), OTHER]
    return {stack: found[stack] for stack in sorted(found, key=order.index)}


def _draw_scores(axes: Axes, record: TruncationRecord) -> None:
    ranks = sorted(map(int, record["ranks"]))
    of = [record["ranks"][str(rank)] for rank in ranks]
    main = Scoring.of_result(record).main
    values = [score_of(x, main.name) for x in of]
    ends = [interval_of(x, main.name) for x in of]
    reach = error_bars(values, ends)
    axes.errorbar(
        ranks, values, reach, fmt="o-", color=COLORS["lora"], ecolor="#333333", elinewidth=0.8, capsize=3
    )
    needed = record["needed"]
    axes.plot(needed, values[ranks.index(needed)], "o", ms=13, mfc="none", mec=COLORS["lora"], mew=1.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, list(map(str, ranks)))
    axes.minorticks_off()
    axes.set_xlabel("rank (ring: the least that is not worse)")
    axes.set_ylabel(axis_label(main))


def _draw_spectra(axes: Axes, of: Mapping[str, list[Sequence[float]]], colors: Mapping[str, str]) -> None:
    """Draw one thin line per layer, and per projection a thick one: its layers' median."""
    for name, layers in of.items():
        for shares in layers:
            axes.plot(range(1, len(shares) + 1), shares, color=colors[name], lw=0.7, alpha=0.4)
        middle = [median(column) for column in zip_longest(*layers, fillvalue=0.0)]
        axes.plot(range(1, len(middle) + 1), middle, color=colors[name], lw=2.2, label=name)
    axes.set_xscale("log", base=2)
    ticks = [2**i for i in range(len(middle).bit_length())]
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("singular direction")
    axes.legend(frameon=False, fontsize=8, title_fontsize=8, title="median; thin: a layer")
