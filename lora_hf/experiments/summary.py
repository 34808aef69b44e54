"""The figures of a comparison, from the results and predictions of its runs: plain values in and out."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, cast

from lora_hf.evaluation.rouge import DialogueScores, score_dialogues
from lora_hf.evaluation.significance import SIGNIFICANCE_LEVEL, bootstrap_interval, paired_test
from lora_hf.run_files import COMPARISON, REPORT, ROUGE_NAMES, SWEEP, VARIANTS, RougeName
from lora_hf.run_records import Comparison, Gains, Interval, PairedRecord, Prediction, RunResult, Series

Scores = dict[RougeName, list[float]]
"""One value per dialogue."""
TRIVIAL = {"first line": 1, "first three lines": 3}
SAMPLES = 5
CLOCK = 0.01
"""Seconds, to which `eval_seconds` is rounded: the least that a base is taken to need."""
OF_ONE_RUN = (*(f"{name}_interval" for name in ROUGE_NAMES), "log", "steps", "train_loss", "best_metric")
"""Keys without a mean; they stay with each run under `runs`."""
MEANS = (*ROUGE_NAMES, "mean_words", "train_seconds", "eval_seconds", "peak_memory_mib")


def summarize(
    kind: str,
    results: Mapping[str, Sequence[RunResult]],
    rows: Mapping[str, Sequence[list[Prediction]]],
    scores: Mapping[str, Scores],
    points: Mapping[str, Any] | None = None,
) -> Comparison:
    """Summarize the runs of several variants.

    Args:
        kind: `comparison`, `report` (one run), `methods` or `sweep`.
        results: by variant, the result of each seed's run.
        rows: by variant, the predictions of each seed's run.
        scores: by variant, `dialogue_scores` of the rows.
        points: by variant of a sweep, its value on each axis; the base has none.

    Returns:
        The content of the JSON file but its command. With several seeds a variant has means, `spread` and
        `runs`. The plateau of a sweep is the least value that no larger one is better than, by a paired
        test; `cheapest` has the fewest weights among those with ROUGE-1 within the best one's interval.
    """
    variants = {name: mean_result(list(runs)) for name, runs in results.items()}
    summary: Comparison = {"intervals": intervals(scores)}
    if kind in (COMPARISON, REPORT):
        first = {name: runs[0] for name, runs in rows.items()}
        of_one = next(iter(first.values()))
        summary["arms"] = variants
        summary["trivial"] = {name: trivial_scores(of_one, lines) for name, lines in TRIVIAL.items()}
        summary["samples"] = samples(first)
        if {"base", "full", "lora"} <= scores.keys():
            summary["gains"] = gains(scores)
            summary["paired_test"] = paired_record(scores["lora"], scores["full"])
        return summary
    summary["variants"] = variants
    summary["order"] = list(variants)  # JSON's keys are sorted
    if kind == VARIANTS:
        others = [name for name in variants if name != "lora"]
        seconds = {name: result["eval_seconds"] for name, result in variants.items()}
        summary["against_lora"] = {name: paired_record(scores[name], scores["lora"]) for name in others}
        summary["eval_ratio"] = {name: seconds[name] / max(seconds["base"], CLOCK) for name in variants}
    if kind == SWEEP:
        assert points is not None
        axis = next(iter(next(iter(points.values()))))
        best = max(points, key=lambda name: variants[name]["rouge1"])
        low, _ = summary["intervals"][best]["rouge1"]
        enough = [name for name in points if variants[name]["rouge1"] >= low]
        summary["points"] = dict(points)
        summary["axis"] = axis
        summary["series"] = {
            label: _series(axis, names, points, scores) for label, names in series_of(axis, points).items()
        }
        summary["best"] = best
        summary["cheapest"] = min(enough, key=lambda name: variants[name]["trainable_parameters"])
    return summary


def intervals(scores: Mapping[str, Scores]) -> dict[str, dict[RougeName, Interval]]:
    """Return the 95 % interval of each score, by bootstrap over dialogues."""
    return {
        variant: {name: list(bootstrap_interval(of[name])) for name in ROUGE_NAMES}
        for variant, of in scores.items()
    }


def dialogue_scores(runs: Sequence[DialogueScores]) -> Scores:
    """Return each dialogue's ROUGE: the mean over its references, then over the seeds' runs."""
    return {
        name: [mean(values) for values in zip(*(run.mean[name] for run in runs), strict=True)]
        for name in ROUGE_NAMES
    }


def mean_result(runs: list[RunResult]) -> RunResult:
    """Return the result of one run unchanged; of several, the means, their spread, and all runs."""
    if len(runs) == 1:
        return runs[0]
    of = [cast(dict[str, Any], run) for run in runs]
    keys = [*MEANS, *(f"{name}_best" for name in ROUGE_NAMES if f"{name}_best" in of[0])]
    shared = {key: value for key, value in of[0].items() if key not in OF_ONE_RUN}
    means = {key: mean(run[key] for run in of) for key in keys}
    spread = {name: stdev(run[name] for run in runs) for name in ROUGE_NAMES}
    seeds = [run["seed"] for run in runs]
    return cast(RunResult, shared | means | {"spread": spread, "seeds": seeds, "runs": runs})


def trivial_scores(rows: Sequence[Prediction], lines: int) -> dict[RougeName, float]:
    """Return the ROUGE of each dialogue's first lines, taken as its summary."""
    predictions = ["\n".join(row["dialogue"].split("\n")[:lines]) for row in rows]
    scores = score_dialogues(predictions, [row["references"] for row in rows])
    return {name: mean(scores.mean[name]) for name in ROUGE_NAMES}


def gains(scores: Mapping[str, Scores]) -> Gains:
    """Return ROUGE-1 above the base's, and LoRA's as a share of full's; None if full gained nothing."""
    base, full, lora = (mean(scores[method]["rouge1"]) for method in ("base", "full", "lora"))
    share = (lora - base) / (full - base) if full > base else None
    return {"full": full - base, "lora": lora - base, "lora_share_of_full": share}


def paired_record(ours: Scores, theirs: Scores) -> PairedRecord:
    """Return the paired test of ROUGE-1, dialogue by dialogue."""
    test = paired_test(ours["rouge1"], theirs["rouge1"])
    return {
        "metric": "rouge1",
        "difference": test.difference,
        "interval": list(test.interval),
        "p_value": test.p_value,
        "n": test.n,
    }


def samples(rows: Mapping[str, Sequence[Prediction]]) -> list[dict[str, str]]:
    """Return the first dialogues with a reference and what each variant wrote."""
    return [
        {
            "id": row["id"],
            "dialogue": row["dialogue"],
            "reference": row["references"][0],
            **{name: predicted[i]["prediction"] for name, predicted in rows.items()},
        }
        for i, row in enumerate(next(iter(rows.values()))[:SAMPLES])
    ]


def series_of(axis: str, points: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the variants along one axis, sorted by number: label of the other axes -> names."""
    found: dict[str, list[str]] = {}
    for name, point in points.items():
        label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point.items() if key != axis)
        found.setdefault(label, []).append(name)
    values = [point[axis] for point in points.values()]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        found = {label: sorted(names, key=lambda name: points[name][axis]) for label, names in found.items()}
    return found


def _series(axis: str, names: list[str], points: Mapping[str, Any], scores: Mapping[str, Scores]) -> Series:
    means = {name: sum(scores[name]["rouge1"]) / len(scores[name]["rouge1"]) for name in names}
    return {
        "runs": names,
        "values": [points[name][axis] for name in names],
        "plateau": points[plateau(names, scores)][axis],
        "best": points[max(names, key=lambda name: means[name])][axis],
    }


def plateau(names: Sequence[str], scores: Mapping[str, Scores]) -> str:
    """Return the first variant that no later one beats in a paired test of ROUGE-1 (Bonferroni)."""
    for i, name in enumerate(names):
        later = names[i + 1 :]
        tests = [paired_test(scores[other]["rouge1"], scores[name]["rouge1"]) for other in later]
        if not any(t.difference > 0 and t.p_value < SIGNIFICANCE_LEVEL / len(later) for t in tests):
            return name
    raise AssertionError("the last one has no later one")
