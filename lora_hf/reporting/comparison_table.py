"""The table of a comparison, a study of methods or a sweep: one list of lines, for terminal and Markdown.

Few variants with many measures have a column per variant (`arms`); studies and sweeps have a row per variant.
"""

from collections.abc import Callable, Collection, Sequence

from rich.table import Table

from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.significance import SIGNIFICANCE_LEVEL, is_significant
from lora_hf.reporting.tables import (
    DIGITS,
    Place,
    bytes_cell,
    markdown_table,
    sample_markdown,
    seconds_cell,
    terminal_table,
    with_interval,
)
from lora_hf.run_records import (
    Comparison,
    Published,
    RetentionRecord,
    RunResult,
    best_of,
    score_of,
    variants_of,
)
from lora_hf.scores import Score

METHOD_LABELS = {"base": "base", "full": "full", "lora": "LoRA"}
Cell = Callable[[Comparison, str], str]


def comparison_lines(comparison: Comparison) -> list[list[str]]:
    """Return a header, then one line per measure or per variant."""
    if "arms" in comparison:
        return _lines_by_measure(comparison)
    columns = {f"{scoring_of(comparison).main.titled} [95 %]": _main_score}
    columns |= SWEEP_COLUMNS if "series" in comparison else METHODS_COLUMNS
    if "retention" in comparison:
        columns |= {"keeps": _kept}
    rows = [
        [_row_label(comparison, name), *(cell(comparison, name) for cell in columns.values())]
        for name in comparison["order"]
    ]
    return [["", *columns], *rows]


def _result(comparison: Comparison, name: str) -> RunResult:
    return comparison["variants"][name]


def scoring_of(comparison: Comparison) -> Scoring:
    """Return how the runs of a comparison were scored."""
    return Scoring.of_result(next(iter(variants_of(comparison).values())))


def _main_score(comparison: Comparison, name: str) -> str:
    main = scoring_of(comparison).main
    return scored(comparison, name, main)


def scored(comparison: Comparison, name: str, score: Score) -> str:
    """Return a variant's score with its interval."""
    value = score_of(variants_of(comparison)[name], score.name)
    return with_interval(score, value, comparison["intervals"][name][score.name])


def best_places(comparison: Comparison) -> set[Place]:
    """Return the cells of `comparison_lines` that hold the best value of a score, of several variants."""
    variants, lines = variants_of(comparison), comparison_lines(comparison)
    if len(variants) < 2:
        return set()

    def best_of_all(names: list[str], score: Score) -> list[int]:
        values = [score.sign * score_of(variants[name], score.name) for name in names]
        if len({*values}) == 1:
            return []  # none is better than another
        return [place for place, value in enumerate(values, start=1) if value == max(values)]

    scoring = scoring_of(comparison)
    if "arms" not in comparison:
        return {(row, 1) for row in best_of_all(comparison["order"], scoring.main)}
    rows = {line[0]: row for row, line in enumerate(lines)}
    names = list(variant_labels(variants))
    return {(rows[score.titled], column) for score in scoring.scores for column in best_of_all(names, score)}


def _difference(comparison: Comparison, name: str) -> str:
    test = comparison["against_lora"].get(name)
    return scoring_of(comparison).main.text(test["difference"], 3, signed=True) if test else "–"


def _p_value(comparison: Comparison, name: str) -> str:
    test = comparison["against_lora"].get(name)
    return f"{test['p_value']:.2g}" if test else "–"


def _loss(comparison: Comparison, name: str) -> str:
    loss = last_loss(_result(comparison, name))
    return "–" if loss is None else f"{loss:.3f}"


COSTS: dict[str, Cell] = {
    "weights": lambda comparison, name: f"{_result(comparison, name)['trainable_parameters']:,}",
    "train": lambda comparison, name: seconds_cell(_result(comparison, name)["train_seconds"]),
    "MiB": lambda comparison, name: f"{_result(comparison, name)['peak_memory_mib']:,.0f}",
}
SCORING: dict[str, Cell] = {
    "scoring": lambda comparison, name: f"{comparison['eval_ratio'][name]:.2f}",
}
METHODS_COLUMNS: dict[str, Cell] = {"− lora": _difference, "p": _p_value} | COSTS | SCORING
SWEEP_COLUMNS: dict[str, Cell] = {"loss": _loss} | COSTS


def _row_label(comparison: Comparison, name: str) -> str:
    if name == comparison.get("cheapest"):
        return f"{name} (cheapest as good)"
    return f"{name} (best)" if name == comparison.get("best") else name


def last_loss(result: RunResult) -> float | None:
    """Return the last loss on the validation split, or of training if there is none; the mean over seeds."""
    found = []
    for run in result.get("runs", [result]):
        log = run.get("log", [])
        losses = [[entry[key] for entry in log if key in entry] for key in ("eval_loss", "loss")]
        found += [float(values[-1]) for values in losses if values][:1]
    return sum(found) / len(found) if found else None


def _lines_by_measure(comparison: Comparison) -> list[list[str]]:
    arms = comparison["arms"]
    labels = variant_labels(arms)
    scoring = scoring_of(comparison)

    def line(name: str, cell: Callable[[RunResult], str]) -> list[str]:
        return [name, *(cell(arms[method]) for method in labels)]

    lines = [["", *labels.values()]]
    if published := comparison.get("published"):
        lines.append(["published ROUGE-1", *(_published(published, method) for method in labels)])
    for score in scoring.scores:
        best = [best_of(arms[method], score.name) for method in labels]
        lines.append([score.titled, *(scored(comparison, method, score) for method in labels)])
        if None not in best:
            lines.append(
                ["best reference", *(score.text(value, DIGITS) for value in best if value is not None)]
            )
        if any("spread" in arms[method] for method in labels):
            spreads = [arms[method].get("spread", {}).get(score.name) for method in labels]
            lines.append(
                ["deviation over seeds", *("–" if s is None else score.text(s, DIGITS) for s in spreads)]
            )
    if "gains" in comparison:
        lines.append([f"gain in {scoring.main.label}", *(_gain(comparison, method) for method in labels)])
    for task, of in comparison.get("retention", {}).items():
        lines.append([f"keeps of {spaced(task)}", *(kept_cell(of[method], method) for method in labels)])
    return [
        *lines,
        line("words", lambda run: f"{run['mean_words']:.1f}"),
        line("weights trained", _trained_weights),
        line("on disk", lambda run: bytes_cell(run["bytes_on_disk"])),
        line("learning rate", lambda run: f"{run['learning_rate']:g}" if "learning_rate" in run else "–"),
        line("training", lambda run: seconds_cell(run["train_seconds"])),
        line("scoring", lambda run: seconds_cell(run["eval_seconds"])),
        line("peak memory", lambda run: f"{run['peak_memory_mib']:,.0f} MiB"),
    ]


def spaced(name: str) -> str:
    """Return the name of a task of `retention` as tables show it."""
    return name.replace("_", " ")


def kept_cell(record: RetentionRecord, variant: str) -> str:
    """Return the share of the base's score with its interval; of the base itself, the score."""
    if variant == "base":
        score = Score(record["metric"], record["label"], scale=record["scale"])
        return f"{record['label']} {score.text(record['value'])}"
    if (kept := record["kept"]) is None:
        return "–"
    low, high = record["kept_interval"]
    return f"{kept:.0%} [{low:.0%}, {high:.0%}]"


def kept_share(comparison: Comparison, variant: str) -> float | None:
    """Return the share of the base's score that a variant keeps, the mean over the tasks of `retention`."""
    shares = [of[variant]["kept"] for of in comparison.get("retention", {}).values()]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _kept(comparison: Comparison, name: str) -> str:
    share = kept_share(comparison, name)
    return "–" if share is None else f"{share:.0%}"


def retention_notes(comparison: Comparison) -> list[str]:
    """Return the notes on what the variants keep of the base's score on tasks that were not trained."""
    if not (kept := comparison.get("retention")):
        return []
    counts = {task: next(iter(of_task.values()))["n"] for task, of_task in kept.items()}
    examples = (
        f"{counts.popitem()[1]} examples of each task"
        if len(set(counts.values())) == 1
        else "examples: " + ", ".join(f"{n} of {spaced(task)}" for task, n in counts.items())
    )
    notes = [
        "Keeps: the share of the base's score on a task that was not trained, with its 95 % interval by "
        f"bootstrap; {examples}."
    ]
    tests = []
    for task, test in comparison.get("retention_test", {}).items():
        record = kept[task]["lora"]
        score = Score(record["metric"], record["label"], scale=record["scale"])
        difference = score.text(test["difference"], signed=True)
        tests.append(f"{spaced(task)} {difference} (p = {test['p_value']:.2g})")
    if tests:
        notes.append(f"LoRA − full on them, paired by example: {', '.join(tests)}.")
    against = [
        f"{spaced(task)} {label} {of[name]['p_value']:.2g}"
        for task, of in kept.items()
        for name, label in variant_labels(of).items()
        if name != "base" and "arms" in comparison
    ]
    if against:
        notes.append(f"p of the paired test against the base: {', '.join(against)}.")
    return notes


def variant_labels(variants: Collection[str]) -> dict[str, str]:
    """Return the displayed name of each variant: base, full and LoRA first."""
    order = [*(name for name in METHOD_LABELS if name in variants)]
    order += [name for name in variants if name not in METHOD_LABELS]
    return {name: METHOD_LABELS.get(name, name.replace("_", " ")) for name in order}


def _gain(comparison: Comparison, method: str) -> str:
    if method not in ("full", "lora"):
        return "–"
    gains = comparison["gains"]
    share = gains["lora_share_of_full"]
    has_share = method == "lora" and is_significant(comparison["paired_test"]["p_value"])
    of_full = f" ({share * 100:.0f}%)" if share is not None and has_share else ""
    gain = gains["full" if method == "full" else "lora"]
    return f"{scoring_of(comparison).main.text(gain, DIGITS, signed=True)}{of_full}"


def _published(published: Published, method: str) -> str:
    return f"{published['rouge1'][method]:.4f}" if method in published["rouge1"] else "–"


def published_note(comparison: Comparison) -> str:
    """Return a sentence on how far the scores are from the published ones, and what has been changed."""
    published, runs = comparison["published"], comparison["arms"]
    gaps = ", ".join(
        f"{label} {runs[method]['rouge1'] - published['rouge1'][method]:+.4f}"
        for method, label in METHOD_LABELS.items()
        if method in runs and method in published["rouge1"]
    )
    note = f"ROUGE-1 minus the published figures (FLAN-T5-base on DialogSum): {gaps}."
    if not published["changes"]:
        return note
    return (
        f"{note} Not a repetition: {'; '.join(published['changes'])}. Another model, fewer rows or fewer "
        "steps cannot be expected to reach the published figures; random weights cannot reach them at all."
    )


def _trained_weights(run: RunResult) -> str:
    return f"{run['trainable_parameters']:,} ({run['trainable_parameters'] / run['total_parameters']:.2%})"


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return the notes below the table: how it was measured, and what is known beside the verdict."""
    variants, scoring = variants_of(comparison), scoring_of(comparison)
    task, main = scoring.task, scoring.main
    reference = variants.get("lora") or next(iter(variants.values()))
    if "series" in comparison:
        reference = variants[comparison["best"]]
    seeds = f", means of {len(reference['seeds'])} seeds" if "seeds" in reference else ""
    n = task.counted(reference["n_examples"], "test")
    sample = f"{n}{seeds}; 95 % intervals by bootstrap over {task.sources}."
    notes = [sample]
    if "arms" in comparison:
        of_trivial = {
            name: main.text(scores[main.name], DIGITS) for name, scores in comparison["trivial"].items()
        }
        trivial = ", ".join(f"{name} {value}" for name, value in of_trivial.items())
        published = [published_note(comparison)] if "published" in comparison else []
        words = f"Words: the mean per {task.target}; references have {reference['reference_words']:.1f}."
        notes = [*published, f"{main.label} of trivial {task.targets}: {trivial}.", words, sample]
    elif "series" in comparison:
        notes = [
            f"Better: {main.label} paired by {task.source}, p < {SIGNIFICANCE_LEVEL} for all the larger "
            "values together.",
            sample,
            "Loss: the last on the validation split, or of training if the run has no evaluation.",
        ]
    else:
        base = variants["base"]
        notes += [
            f"− lora: the difference in {main.label}, and the p value of its paired test by {task.source}.",
            f"Weights: those that are trained; the base has {base['total_parameters']:,}. MiB: peak memory.",
            f"Scoring: the time for writing {task.targets} over the base's {base['eval_seconds']:.1f} s; "
            f"longer {task.targets} take longer. scripts/benchmarks/generation_time.py compares equal work.",
        ]
    notes += retention_notes(comparison)
    if left := comparison.get("diverged"):
        notes.insert(0, f"Left out, because the training diverged: {', '.join(left)}.")
    notes += [f"Data: {warning}." for warning in comparison.get("data_warnings", [])]
    return [*notes, f"{reference['base_model']} in {reference['dtype']} on {reference['device']}."]


def comparison_markdown(comparison: Comparison, title: str, opening: Sequence[str] = ()) -> str:
    """Return the table, the notes and the samples as Markdown.

    Args:
        comparison: what is reported.
        title: the heading.
        opening: lines above the table, such as the verdict.
    """
    notes = "\n".join(f"- {note}" for note in comparison_notes(comparison))
    first = "".join(f"- {line}\n" for line in opening) + "\n" * bool(opening)
    table = markdown_table(comparison_lines(comparison), best_places(comparison))
    text = f"# {title}\n\n{first}{table}\n\n{notes}\n"
    if "samples" not in comparison:
        return text
    return f"{text}\n## Samples\n\n" + "\n\n".join(map(_sample, comparison["samples"])) + "\n"


def _sample(sample: dict[str, str]) -> str:
    texts = {name: text for name, text in sample.items() if name not in ("id", "dialogue", "reference")}
    written = [("reference", sample["reference"])]
    written += [(label, sample[name]) for name, label in variant_labels(texts).items()]
    return f"### {sample['id']}\n\n{sample_markdown(sample['dialogue'], written)}"


def comparison_terminal(comparison: Comparison) -> Table:
    """Return the table for a terminal, its notes as the caption; it fits 80 columns."""
    lines, notes, best = comparison_lines(comparison), comparison_notes(comparison), best_places(comparison)
    return terminal_table(lines, notes, best, box=None, padding=(0, 1, 0, 0))
