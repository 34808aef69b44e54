"""The figures of a comparison, from the results and predictions of its runs: plain values in and out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, cast

from lora_hf.config.task import Task
from lora_hf.evaluation.metrics import Measured, ScoreValues, Scoring
from lora_hf.evaluation.metrics.values import mean_of
from lora_hf.evaluation.retention_scores import Pair, retention_record, retention_test
from lora_hf.evaluation.significance import is_significant
from lora_hf.run_files import COMPARISON, REPORT, SWEEP, VARIANTS
from lora_hf.run_records import (
    Comparison,
    Gains,
    Interval,
    PairedRecord,
    Prediction,
    RunResult,
    Series,
    score_of,
)
from lora_hf.scores import Score

Scores = Mapping[str, ScoreValues]
"""The scores of one variant by name, over the examples of the test split."""
SAMPLES = 5
CLOCK = 0.01
"""Seconds, to which `eval_seconds` is rounded: the least that a base is taken to need."""
OF_ONE_RUN = ("retention", "log", "steps", "train_loss", "best_metric")
"""Keys without a mean, beside the intervals; they stay with each run under `runs`."""
MEANS = ("mean_words", "train_seconds", "eval_seconds", "peak_memory_mib")
"""Keys with a mean, beside the scores."""
LONGEST_TRIVIAL = 10_000  # characters


def summarize(
    kind: str,
    results: Mapping[str, Sequence[RunResult]],
    rows: Mapping[str, Sequence[list[Prediction]]],
    scores: Mapping[str, Scores],
    points: Mapping[str, Any] | None = None,
    scoring: Scoring | None = None,
    retention: Mapping[str, Mapping[str, Pair]] | None = None,
    retention_scorings: Mapping[str, Scoring] | None = None,
) -> Comparison:
    """Summarize the runs of several variants.

    Args:
        kind: `comparison`, `report` (one run), `methods` or `sweep`.
        results: by variant, the result of each seed's run.
        rows: by variant, the predictions of each seed's run.
        scores: by variant, `mean_scores` of the rows.
        points: by variant of a sweep, its value on each axis; the base has none.
        scoring: of the runs; None is that of summaries.
        retention: by variant and task of `retention`, the score of the model and of its base.
        retention_scorings: by task, how it is scored.

    Returns:
        The content of the JSON file but its command. With several seeds a variant has means, `spread` and
        `runs`. The plateau of a sweep is the least value that no larger one is better than, by a paired
        test; `cheapest` has the fewest weights among those with a main score within the best one's interval.
    """
    scoring = scoring or Scoring()
    main = scoring.main
    variants = {name: mean_result(list(runs), scoring) for name, runs in results.items()}
    summary: Comparison = {"intervals": intervals(scores)}
    if retention and retention_scorings:
        summary["retention"] = {
            name: {variant: retention_record(of[name], by) for variant, of in retention.items()}
            for name, by in retention_scorings.items()
        }
        if {"full", "lora"} <= retention.keys():
            summary["retention_test"] = {
                name: retention_test(retention["lora"][name], retention["full"][name], by)
                for name, by in retention_scorings.items()
            }
    if kind in (COMPARISON, REPORT):
        first = {name: runs[0] for name, runs in rows.items()}
        of_one = next(iter(first.values()))
        summary["arms"] = variants
        summary["trivial"] = trivial_scores(of_one, scoring)
        summary["samples"] = samples(first)
        if {"base", "full", "lora"} <= scores.keys():
            summary["gains"] = gains(scores, main)
            summary["paired_test"] = paired_record(scores["lora"], scores["full"], main)
            summary["against_base"] = {
                name: paired_record(scores[name], scores["base"], main) for name in ("lora", "full")
            }
        return summary
    summary["variants"] = variants
    summary["order"] = list(variants)  # JSON's keys are sorted
    if kind == VARIANTS:
        others = [name for name in variants if name != "lora"]
        seconds = {name: result["eval_seconds"] for name, result in variants.items()}
        summary["against_lora"] = {name: paired_record(scores[name], scores["lora"], main) for name in others}
        summary["eval_ratio"] = {name: seconds[name] / max(seconds["base"], CLOCK) for name in variants}
    if kind == SWEEP:
        assert points is not None
        axis = next(iter(next(iter(points.values()))))
        best = max(points, key=lambda name: main.sign * score_of(variants[name], main.name))
        least = min(main.sign * end for end in summary["intervals"][best][main.name])
        enough = [name for name in points if main.sign * score_of(variants[name], main.name) >= least]
        summary["points"] = dict(points)
        summary["axis"] = axis
        summary["series"] = {
            label: _series(axis, names, points, scores, main)
            for label, names in series_of(axis, points).items()
        }
        summary["best"] = best
        summary["cheapest"] = min(enough, key=lambda name: variants[name]["trainable_parameters"])
    return summary


def intervals(scores: Mapping[str, Scores]) -> dict[str, dict[str, Interval]]:
    """Return the 95 % interval of each score, by bootstrap over examples."""
    return {variant: {name: own.interval() for name, own in of.items()} for variant, of in scores.items()}


def mean_scores(runs: Sequence[Measured]) -> Scores:
    """Return each score, as its mean over the seeds' runs."""
    return {name: mean_of([run.scores[name] for run in runs]) for name in runs[0].scores}


def mean_result(runs: list[RunResult], scoring: Scoring | None = None) -> RunResult:
    """Return the result of one run unchanged; of several, the means, their spread, and all runs."""
    if len(runs) == 1:
        return runs[0]
    of = [cast(dict[str, Any], run) for run in runs]
    names = (scoring or Scoring()).task.score_names
    keys = [*names, *MEANS, *(f"{name}_best" for name in names if f"{name}_best" in of[0])]
    left_out = {*OF_ONE_RUN, *(f"{name}_interval" for name in names)}
    shared = {key: value for key, value in of[0].items() if key not in left_out}
    means = {key: mean(run[key] for run in of) for key in keys}
    spread = {name: stdev(run[name] for run in of) for name in names}
    seeds = [run["seed"] for run in runs]
    return cast(RunResult, shared | means | {"spread": spread, "seeds": seeds, "runs": runs})


def trivial_scores(rows: Sequence[Prediction], scoring: Scoring | None = None) -> dict[str, dict[str, float]]:
    """Return the scores of outputs that need no model, by what they are."""
    scoring = scoring or Scoring()
    references = [row["references"] for row in rows]
    found = {}
    for name, outputs in trivial_outputs(rows, scoring.task).items():
        measured = scoring.measure(outputs, references)
        found[name] = {score: values.exact for score, values in measured.scores.items()}
    return found


def trivial_outputs(rows: Sequence[Prediction], task: Task) -> dict[str, list[str]]:
    """Return the outputs of a task that need no model: one per row, by what they are.

    Of a text longer than `LONGEST_TRIVIAL`, such as a book in one line, it is the beginning: ROUGE-L of a
    whole one with its summary takes too long.
    """
    texts = [row["dialogue"][:LONGEST_TRIVIAL] for row in rows]
    if task.trivial == "first lines":
        lines = {"first line": 1, "first three lines": 3}
        return {name: ["\n".join(text.split("\n")[:n]) for text in texts] for name, n in lines.items()}
    if task.trivial == "source":
        return {f"the {task.source} itself": texts}
    counts = Counter(reference for row in rows for reference in row["references"])
    return {f"most frequent {task.target}": [counts.most_common(1)[0][0]] * len(rows)}


def gains(scores: Mapping[str, Scores], main: Score) -> Gains:
    """Return by how much the main score is better than the base's, and LoRA's share of full's gain.

    The share is None if full fine-tuning gained nothing.
    """
    base, full, lora = (main.sign * scores[method][main.name].exact for method in ("base", "full", "lora"))
    share = (lora - base) / (full - base) if full > base else None
    return {"full": full - base, "lora": lora - base, "lora_share_of_full": share}


def paired_record(ours: Scores, theirs: Scores, main: Score) -> PairedRecord:
    """Return the paired test of the main score, example by example."""
    test = ours[main.name].against(theirs[main.name])
    return {
        "metric": main.name,
        "difference": test.difference,
        "interval": list(test.interval),
        "p_value": test.p_value,
        "n": test.n,
    }


def samples(rows: Mapping[str, Sequence[Prediction]]) -> list[dict[str, str]]:
    """Return the first examples with a reference and what each variant wrote."""
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


def _series(
    axis: str, names: list[str], points: Mapping[str, Any], scores: Mapping[str, Scores], main: Score
) -> Series:
    return {
        "runs": names,
        "values": [points[name][axis] for name in names],
        "plateau": points[plateau(names, scores, main)][axis],
        "best": points[max(names, key=lambda name: main.sign * scores[name][main.name].exact)][axis],
    }


def plateau(names: Sequence[str], scores: Mapping[str, Scores], main: Score) -> str:
    """Return the first variant that no later one beats in a paired test of the main score (Bonferroni)."""
    for i, name in enumerate(names):
        later = names[i + 1 :]
        tests = [scores[other][main.name].against(scores[name][main.name]) for other in later]
        if not any(main.sign * t.difference > 0 and is_significant(t.p_value, len(later)) for t in tests):
            return name
    raise AssertionError("the last one has no later one")
