"""Scores on the tasks of `retention`, from a run's files alone: reading them loads no model library."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.metrics.values import ScoreValues, mean_of
from lora_hf.run_records import PairedRecord, RetentionRecord, RetentionRow

Pair = tuple[ScoreValues, ScoreValues]
"""Main score of the model, and of its base."""


def retention_scores(rows: Sequence[RetentionRow], scorings: Mapping[str, Scoring]) -> dict[str, Pair]:
    """Return the main score on each task, of the model and of its base."""
    found = {}
    for name, scoring in scorings.items():
        own = [row for row in rows if row["task"] == name]
        references = [row["references"] for row in own]
        of_model = scoring.measure([row["prediction"] for row in own], references)
        of_base = scoring.measure([row["base"] for row in own], references)
        main = scoring.main.name
        found[name] = (of_model.scores[main], of_base.scores[main])
    return found


def scorings_of(result: Mapping[str, Any]) -> dict[str, Scoring]:
    """Return how the tasks of `retention` in a run's results are scored."""
    return {name: Scoring.of_result(of) for name, of in result.get("retention_tasks", {}).items()}


def mean_pair(runs: Sequence[Pair]) -> Pair:
    """Return the mean scores of several seeds' runs."""
    return mean_of([ours for ours, _ in runs]), mean_of([base for _, base in runs])


def retention_record(pair: Pair, scoring: Scoring) -> RetentionRecord:
    """Return the score on one task, and which share of the base's it is, with intervals and a paired test."""
    ours, base = pair
    main = scoring.main
    record: RetentionRecord = {
        "metric": main.name,
        "label": main.label,
        "scale": main.scale,
        "n": len(ours.statistics),
        "value": ours.exact,
        "interval": ours.interval(),
        "base": base.exact,
        "p_value": ours.against(base).p_value,
        "kept": None,
    }
    if (share := ours.share_of(base, main.higher_is_better)) is not None:
        record["kept"], record["kept_interval"] = share
    return record


def retention_test(ours: Pair, theirs: Pair, scoring: Scoring) -> PairedRecord:
    """Return the paired test of one variant's score against another's."""
    test = ours[0].against(theirs[0])
    return {
        "metric": scoring.main.name,
        "difference": test.difference,
        "interval": list(test.interval),
        "p_value": test.p_value,
        "n": test.n,
    }
