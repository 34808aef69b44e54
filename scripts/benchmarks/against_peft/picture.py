"""The figure of bench.json."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

ROWS = {
    ("train", "ratio_default"): "training step, PEFT with its defaults",
    ("train", "ratio_best"): "training step, PEFT with its best settings",
    ("evaluate", "ratio"): "generation (float32), Seq2SeqTrainer.predict",
    ("evaluate_beams", "ratio"): "the same with four beams",
    ("evaluate_bf16", "ratio"): "the same, greedy in bf16",
    ("start_up", "ratio"): "loading the base and injecting adapters, PEFT",
    ("dora", "ratio"): "training step, our DoRA / our LoRA",
    ("four_bit", "ratio"): "training step, our 4-bit base / our dense base",
}
AHEAD, BEHIND, OWN = "#2a7f62", "#b5523b", "#6d8a96"


def draw_bench(record: dict[str, Any], file: Path) -> None:
    """Write a PNG of bench.json: one bar per ratio with its percentiles 5 and 95; 1 means equal time."""
    found = [(part, label, record[part], key) for (part, key), label in ROWS.items() if part in record]
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 1.4 + 0.45 * len(found)), layout="constrained")
        axes = figure.subplots()
        for place, (part, _, of, key) in enumerate(found):
            low, high = of[f"{key}_spread"]
            reach = [[max(of[key] - low, 0)], [max(high - of[key], 0)]]
            against_peer = AHEAD if of[key] >= 1 else BEHIND
            axes.barh(place, of[key], color=OWN if part in ("dora", "four_bit") else against_peer, height=0.6)
            axes.errorbar(of[key], place, xerr=reach, color="#333333", capsize=3, lw=1)
            axes.annotate(
                f"{of[key]:.2f}", (high, place), xytext=(6, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(found)), [label for _, label, _, _ in found])
        axes.invert_yaxis()
        axes.axvline(1, color="#333333", lw=1)
        axes.margins(x=0.12)
        axes.set_xlabel("time relative to lora_hf, with percentiles 5 and 95; gray: lora_hf itself")
        figure.suptitle(_title(record), x=0.01, ha="left", fontsize=10)
        figure.savefig(file, dpi=150)


def _title(record: dict[str, Any]) -> str:
    machine, settings = record["machine"], record["settings"]
    memory = record.get("train", {}).get("memory_ratio")
    tail = f"; peak memory {memory:.2f} of PEFT's" if memory else ""
    return f"shape of FLAN-T5-{settings['shape']}, r = {settings['r']}, {machine['device']}{tail}"
