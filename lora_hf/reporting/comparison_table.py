"""The comparison as a table: one list of lines, for the terminal and for Markdown."""

from collections.abc import Callable, Collection

from rich.table import Table

from lora_hf.reporting.tables import (
    ROUGE_LABELS,
    Record,
    bytes_cell,
    markdown_table,
    sample_markdown,
    seconds_cell,
    terminal_table,
)

ARMS = {"base": "base", "full": "full", "lora": "LoRA"}


def comparison_lines(comparison: Record) -> list[list[str]]:
    """A header, then one line a measure: its name, and a figure for each arm that there is."""
    arms = comparison["arms"]
    labels = arm_labels(arms)

    def line(name: str, cell: Callable[[str, Record], str]) -> list[str]:
        return [name, *(cell(method, arms[method]) for method in labels)]

    references = f"words (people: {next(iter(arms.values()))['reference_words']:.1f})"
    gained = comparison.get("gains")
    return [
        ["", *labels.values()],
        *_rouge_lines(comparison),
        *([line("gain in ROUGE-1", lambda method, _: _gain(gained, method))] if gained else []),
        line(references, lambda _, arm: f"{arm['mean_words']:.1f}"),
        line("weights trained", lambda _, arm: _weights(arm)),
        line("on disk", lambda _, arm: bytes_cell(arm["bytes_on_disk"])),
        line("learning rate", lambda _, arm: f"{arm['learning_rate']:g}" if "learning_rate" in arm else "–"),
        line("training", lambda _, arm: seconds_cell(arm["train_seconds"])),
        line("scoring", lambda _, arm: seconds_cell(arm["eval_seconds"])),
        line("peak memory", lambda _, arm: f"{arm['peak_memory_mib']:,.0f} MiB"),
    ]


def arm_labels(arms: Collection[str]) -> dict[str, str]:
    """Method -> how it is called, of the arms there are: base, full and LoRA first."""
    order = [*(method for method in ARMS if method in arms), *(m for m in arms if m not in ARMS)]
    return {method: ARMS.get(method, method.replace("_", " ")) for method in order}


def _rouge_lines(comparison: Record) -> list[list[str]]:
    arms, lines = comparison["arms"], []
    labels = arm_labels(arms)
    for name, label in ROUGE_LABELS.items():
        intervals = [comparison["intervals"][m][name] for m in labels]
        lines.append([label, *(f"{arms[m][name]:.4f}" for m in labels)])
        lines.append(["95 % interval", *(f"{low:.4f}–{high:.4f}" for low, high in intervals)])
        if all(f"{name}_best" in arms[m] for m in labels):
            lines.append(["best reference", *(f"{arms[m][f'{name}_best']:.4f}" for m in labels)])
        if any("spread" in arms[m] for m in labels):
            spreads = [arms[m].get("spread", {}).get(name) for m in labels]
            lines.append(["deviation over seeds", *("–" if s is None else f"{s:.4f}" for s in spreads)])
    return lines


def comparison_notes(comparison: Record) -> list[str]:
    """What stands below the table: trivial summaries, the paired test, how it was measured."""
    trivial = ", ".join(f"{name} {scores['rouge1']:.4f}" for name, scores in comparison["trivial"].items())
    arms = comparison["arms"]
    arm = arms.get("lora") or next(iter(arms.values()))
    seeds = f", means of {len(arm['seeds'])} seeds" if "seeds" in arm else ""
    return [
        f"ROUGE-1 of summaries that cost nothing: {trivial}.",
        *([_paired(comparison["paired_test"])] if "paired_test" in comparison else []),
        f"{arm['n_examples']:,} test dialogues{seeds}; 95 % intervals by bootstrap over dialogues.",
        f"{arm['base_model']} in {arm['dtype']} on {arm['device']}.",
    ]


def _paired(test: Record) -> str:
    low, high = test["interval"]
    return (
        f"LoRA − full in ROUGE-1: {test['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
        f"p = {test['p_value']:.2g}, paired by dialogue."
    )


def comparison_markdown(comparison: Record) -> str:
    """The table, the notes and the samples as Markdown."""
    table = markdown_table(comparison_lines(comparison))
    notes = "\n".join(f"- {note}" for note in comparison_notes(comparison))
    samples = "\n\n".join(_sample(sample) for sample in comparison["samples"])
    title = "Base, full fine-tuning and LoRA" if "gains" in comparison else "One run"
    return f"# {title}\n\n{table}\n\n{notes}\n\n## Samples\n\n{samples}\n"


def comparison_terminal(comparison: Record) -> Table:
    """The table for a terminal, its notes as the caption."""
    return terminal_table(comparison_lines(comparison), comparison_notes(comparison))


def _sample(sample: Record) -> str:
    texts = {name: text for name, text in sample.items() if name not in ("id", "dialogue", "reference")}
    written = [("reference", sample["reference"])]
    written += [(label, sample[arm]) for arm, label in arm_labels(texts).items()]
    return f"### {sample['id']}\n\n{sample_markdown(sample['dialogue'], written)}"


def _gain(gains: Record, method: str) -> str:
    if method == "base":
        return "–"
    share = gains["lora_share_of_full"]
    of_full = f" ({share:.0%} of full's)" if method == "lora" and share is not None else ""
    return f"{gains[method]:+.4f}{of_full}"


def _weights(arm: Record) -> str:
    return f"{arm['trainable_parameters']:,} ({arm['trainable_parameters'] / arm['total_parameters']:.2%})"
