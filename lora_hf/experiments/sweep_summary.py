"""What a sweep says: scores along its first axis, where more no longer helps, the cheapest that is enough."""

from collections.abc import Mapping
from typing import Any

from lora_hf.evaluation.significance import SIGNIFICANCE_LEVEL, paired_test
from lora_hf.experiments.summary import Rows, Scores, dialogue_scores, intervals, mean_record


def summarize_sweep(
    records: Mapping[str, list[dict[str, Any]]], rows: Mapping[str, list[Rows]], points: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole of sweep.json but its command.

    Args:
        records: by run, the record of each seed.
        rows: by run, the rows of each seed's predictions.jsonl.
        points: by run, its value on each axis; the base has none.

    Returns:
        `variants`, `order` and `intervals` as a study of methods, and `points`; `axis` (the first), and
        `series`: for each combination of the other axes its `runs` along it, the `plateau` (the least value
        that no larger one is better than, by a paired test), and its `best`; and of all runs `best`, and
        `cheapest`: the fewest weights among those whose ROUGE-1 is within the best one's interval.
    """
    scores = {name: dialogue_scores(runs) for name, runs in rows.items()}
    variants = {name: mean_record(runs) for name, runs in records.items()}
    found = intervals(scores)
    best = max(points, key=lambda name: variants[name]["rouge1"])
    enough = [name for name in points if variants[name]["rouge1"] >= found[best]["rouge1"][0]]
    axis = next(iter(next(iter(points.values()))))
    return {
        "variants": variants,
        "order": list(variants),
        "intervals": found,
        "points": dict(points),
        "axis": axis,
        "series": {
            label: _series(axis, names, points, scores) for label, names in lines(axis, points).items()
        },
        "best": best,
        "cheapest": min(enough, key=lambda name: variants[name]["trainable_parameters"]),
    }


def lines(axis: str, points: Mapping[str, Any]) -> dict[str, list[str]]:
    """Label of the other axes' values -> the runs along one axis, by its value where that is a number."""
    found: dict[str, list[str]] = {}
    for name, point in points.items():
        label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point.items() if key != axis)
        found.setdefault(label, []).append(name)
    if all(_is_number(point[axis]) for point in points.values()):
        found = {label: sorted(names, key=lambda name: points[name][axis]) for label, names in found.items()}
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _series(
    axis: str, names: list[str], points: Mapping[str, Any], scores: Mapping[str, Scores]
) -> dict[str, Any]:
    means = {name: sum(scores[name]["rouge1"]) / len(scores[name]["rouge1"]) for name in names}
    return {
        "runs": names,
        "values": [points[name][axis] for name in names],
        "plateau": points[plateau(names, scores)][axis],
        "best": points[max(names, key=lambda name: means[name])][axis],
    }


def plateau(names: list[str], scores: Mapping[str, Scores]) -> str:
    """Return the first run that no later one beats in a paired test of ROUGE-1 (Bonferroni)."""
    return next(
        name
        for i, name in enumerate(names)
        if not any(_better(x, name, names[i:], scores) for x in names[i + 1 :])
    )


def _better(other: str, name: str, rest: list[str], scores: Mapping[str, Scores]) -> bool:
    test = paired_test(scores[other]["rouge1"], scores[name]["rouge1"])
    return test.difference > 0 and test.p_value < SIGNIFICANCE_LEVEL / (len(rest) - 1)
