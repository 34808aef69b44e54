"""The verdict of a report in words, the same on the terminal, in Markdown and on the page.

A difference is called significant by its paired test alone: at `SIGNIFICANCE_LEVEL`, divided by the number of
tests where several variants are compared with one.
"""

from collections.abc import Mapping, Sequence

from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.significance import SIGNIFICANCE_LEVEL, is_significant
from lora_hf.reporting.comparison_table import kept_share, scored, scoring_of, variant_labels
from lora_hf.reporting.tables import DIGITS
from lora_hf.run_records import Comparison, PairedRecord, Series, score_of, variants_of
from lora_hf.scores import Score

REFERENCE = "lora"
"""The variant that `methods` compares the others with."""


def verdict(comparison: Comparison) -> list[str]:
    """Return the findings of a comparison, a study, a sweep or one run; the main one first."""
    if "series" in comparison:
        return _of_sweep(comparison)
    if "against_lora" in comparison:
        return _of_methods(comparison)
    return _of_comparison(comparison) if "paired_test" in comparison else _of_run(comparison)


def difference_words(ours: str, theirs: str, test: PairedRecord, score: Score, tests: int = 1) -> str:
    """Return a paired test in words.

    Args:
        ours: the variant whose score is the minuend.
        theirs: the other variant.
        test: their paired test.
        score: the tested score.
        tests: number of tests made at once (Bonferroni).

    Returns:
        For example `LoRA vs full: +0.006 ROUGE-1, 95 % CI -0.028 to +0.039, p = 0.71: no significant
        difference`.
    """
    difference, low, high = (
        score.text(value, DIGITS, signed=True) for value in (test["difference"], *test["interval"])
    )
    found = (
        f"{ours} vs {theirs}: {difference} {score.label}, 95 % CI {low} to {high}, p = {test['p_value']:.2g}"
    )
    if is_significant(test["p_value"], tests):
        which = "better" if score.sign * test["difference"] > 0 else "worse"
        return f"{found}: {ours} is significantly {which}"
    if 2 / 2 ** test["n"] >= SIGNIFICANCE_LEVEL / tests:  # the least p value that n signs can have
        examples = f"{test['n']} examples are" if test["n"] > 1 else "one example is"
        return f"{found}: {examples} too few to find a significant difference"
    return f"{found}: no significant difference"


def _of_comparison(comparison: Comparison) -> list[str]:
    main, labels = scoring_of(comparison).main, variant_labels(variants_of(comparison))
    test, share = comparison["paired_test"], comparison["gains"]["lora_share_of_full"]
    lines = [difference_words(labels["lora"], labels["full"], test, main)]
    scores = {labels[name]: score_of(comparison["arms"][name], main.name) for name in ("lora", "full")}
    line, is_better = best_trivial(comparison["trivial"], scoring_of(comparison), scores)
    lines += [line] * is_better
    lines += [
        difference_words(labels[name], labels["base"], comparison["against_base"][name], main)
        for name in ("lora", "full")
        if name in comparison.get("against_base", {})
    ]
    trained = _trained_share(comparison, "lora")
    if share is None:
        trained += "; full fine-tuning gains nothing over the base here"
    elif is_significant(test["p_value"]):  # a share of a gain that does not differ is noise
        trained += f" and reaches {share * 100:.0f}% of full fine-tuning's gain over the base"
    kept = {name: kept_share(comparison, name) for name in ("lora", "full")}
    if None in kept.values():
        return [*lines, trained]
    n = len(comparison["retention"])
    tasks = f"{n} tasks that were" if n > 1 else "1 task that was"
    lora, full = (f"{share * 100:.0f}%" for share in kept.values() if share is not None)
    keeps = f"On {tasks} not trained, LoRA keeps {lora} of the base's score, full fine-tuning {full}"
    return [*lines, trained, keeps]


def _trained_share(comparison: Comparison, name: str) -> str:
    result = variants_of(comparison)[name]
    label = variant_labels([name])[name]
    share = result["trainable_parameters"] / result["total_parameters"]
    return f"{label} trains {share * 100:.2f}% of the weights"


def _of_run(comparison: Comparison) -> list[str]:
    scoring, (name, result) = scoring_of(comparison), next(iter(variants_of(comparison).items()))
    main, n = scoring.main, scoring.task.counted(result["n_examples"], "test")
    label = variant_labels([name])[name]
    lines = [
        f"{label}: {main.label} {scored(comparison, name, main)} on {n}",
        best_trivial(comparison["trivial"], scoring, {label: score_of(result, main.name)})[0],
    ]
    return [*lines, _trained_share(comparison, name)] if result["trainable_parameters"] else lines


def best_trivial(
    scores: Mapping[str, Mapping[str, float]], scoring: Scoring, own: Mapping[str, float]
) -> tuple[str, bool]:
    """Return a sentence on the best output that needs no model, and whether it is better than all of `own`.

    Args:
        scores: what needs no model -> its scores (`experiments.summary.trivial_scores`).
        scoring: the task and its main score.
        own: models by their labels -> their main scores. They are named if the output is better.
    """
    main = scoring.main
    trivial = {what: of[main.name] for what, of in scores.items()}
    best = max(trivial, key=lambda what: main.sign * trivial[what])
    words = f"The best trivial {scoring.task.target} ({best}) scores {main.text(trivial[best], DIGITS)}"
    if all(main.sign * trivial[best] > main.sign * score for score in own.values()):
        return f"{words}, better than {' and '.join(own)}", True
    return words, False


def _best_line(comparison: Comparison, best: str, other: str) -> str:
    """Return the best score beside that of another variant."""
    main, variants = scoring_of(comparison).main, variants_of(comparison)
    extreme = "Highest" if main.higher_is_better else "Lowest"
    line = f"{extreme} {main.label}: {best}, {scored(comparison, best, main)}"
    if other == best or other not in variants:
        return line
    return f"{line}; {other} has {scored(comparison, other, main)}"


def _of_methods(comparison: Comparison) -> list[str]:
    scoring, against, variants = scoring_of(comparison), comparison["against_lora"], comparison["variants"]
    main, tests = scoring.main, len(comparison["against_lora"])
    groups: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for name in (name for name in comparison["order"] if name in against):
        sign = main.sign * against[name]["difference"]
        which = "better" if sign > 0 else "worse"
        groups[which if is_significant(against[name]["p_value"], tests) else "same"].append(name)
    heads = {
        "better": f"significantly better than {REFERENCE}",
        "worse": f"significantly worse than {REFERENCE}",
        "same": f"no significant difference from {REFERENCE}",
    }
    found = "; ".join(f"{heads[group]}: {', '.join(names)}" for group, names in groups.items() if names)
    best = max(variants, key=lambda name: main.sign * score_of(variants[name], main.name))
    level = f"p < {SIGNIFICANCE_LEVEL}" + (f" / {tests} (Bonferroni)" if tests > 1 else "")
    count = f"{tests} tests" if tests > 1 else "1 test"
    return [
        found[:1].upper() + found[1:],
        _best_line(comparison, best, REFERENCE),
        f"{count} against {REFERENCE}, paired by {scoring.task.source}, each at {level}",
    ]


def _of_sweep(comparison: Comparison) -> list[str]:
    variants, best, cheapest = comparison["variants"], comparison["best"], comparison["cheapest"]
    lines = [_best_line(comparison, best, "base")]
    for label, series in comparison["series"].items():
        line = _enough(comparison["axis"], series)
        lines.append(f"{label}: {line[:1].lower()}{line[1:]}" if label else line)
    if cheapest == best:
        return [*lines, "No run that trains fewer weights is within its interval"]
    share = variants[cheapest]["trainable_parameters"] / max(1, variants[best]["trainable_parameters"])
    return [
        *lines,
        f"{cheapest} is within the interval of {best} and trains {share * 100:.3g}% of its weights",
    ]


def _enough(axis: str, series: Series) -> str:
    """Return from which value on no further one is better, by the paired tests of `plateau`."""
    values, enough = series["values"], series["plateau"]
    if len(values) < 2:
        return f"{axis} has the single value {enough}"
    are_numbers = _are_numbers(values)
    if enough == values[-1]:
        further = "a larger" if are_numbers else "a later"
        return f"Each value of {axis} before {enough} is significantly worse than {further} one"
    beyond = f"above {enough}" if are_numbers else f"after {enough}"
    return f"No value of {axis} {beyond} is significantly better"


def _are_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
