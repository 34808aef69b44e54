"""What a comparison says, computed from the arms' records and predictions: plain values in and out."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from lora_hf.evaluation.evaluate import kept_scores
from lora_hf.evaluation.rouge import ROUGE_NAMES, score_dialogues
from lora_hf.evaluation.significance import bootstrap_interval, paired_test
from lora_hf.run_records import Prediction

Rows = list[Prediction]
Scores = dict[str, list[float]]
TRIVIAL = {"first line": 1, "first three lines": 3}
SAMPLES = 5
CLOCK = 0.01
"""Seconds that `eval_seconds` are rounded to: a base that took none is taken to have taken one such."""
BEST = [f"{name}_best" for name in ROUGE_NAMES]
OF_ONE_RUN = (*(f"{name}_interval" for name in ROUGE_NAMES), "log", "steps", "train_loss", "best_metric")
"""What has no mean; it stays with each run under `runs`."""
MEANS = (*ROUGE_NAMES, "mean_words", "train_seconds", "eval_seconds", "peak_memory_mib")


def summarize_arms(
    records: Mapping[Any, list[dict[str, Any]]], rows: Mapping[Any, list[Rows]]
) -> dict[str, Any]:
    """The whole of comparison.json.

    Args:
        records: by method, the record of each seed's run.
        rows: by method, the rows of each seed's predictions.jsonl.

    Returns:
        `arms` (one record a method; with several seeds their means, `spread` and `runs`), `trivial` (ROUGE of
        summaries that cost nothing), `intervals` (95 %, over dialogues) and `samples`; and where base, full
        and LoRA are all there, `gains` over the base in ROUGE-1 and `paired_test` of LoRA against full.
    """
    scores = {method: dialogue_scores(runs) for method, runs in rows.items()}
    first = next(iter(rows.values()))[0]
    summary: dict[str, Any] = {
        "arms": {method: mean_record(runs) for method, runs in records.items()},
        "trivial": {name: trivial_record(first, lines) for name, lines in TRIVIAL.items()},
        "intervals": intervals(scores),
        "samples": samples(rows),
    }
    if {"base", "full", "lora"} <= scores.keys():
        summary["gains"] = gains(scores)
        summary["paired_test"] = paired_record(scores["lora"], scores["full"])
    return summary


def summarize_variants(
    records: Mapping[str, list[dict[str, Any]]], rows: Mapping[str, list[Rows]]
) -> dict[str, Any]:
    """The whole of methods.json.

    Args:
        records: by variant, the record of each seed's run; one is called `base`, one `lora`.
        rows: by variant, the rows of each seed's predictions.jsonl.

    Returns:
        `variants` (one record each, as the arms of a comparison), `order` of them, `intervals` (95 %, over
        dialogues), `against_lora` (the paired test of ROUGE-1 for all but `lora`) and `eval_ratio` (seconds
        of scoring over the base's).
    """
    scores = {name: dialogue_scores(runs) for name, runs in rows.items()}
    variants = {name: mean_record(runs) for name, runs in records.items()}
    others = [name for name in variants if name != "lora"]
    seconds = {name: record["eval_seconds"] for name, record in variants.items()}
    return {
        "variants": variants,
        "order": list(variants),  # JSON's keys are sorted
        "intervals": intervals(scores),
        "against_lora": {name: paired_record(scores[name], scores["lora"]) for name in others},
        "eval_ratio": {name: seconds[name] / max(seconds["base"], CLOCK) for name in variants},
    }


def intervals(scores: Mapping[Any, Scores]) -> dict[Any, dict[str, list[float]]]:
    """The 95 % interval of each score, by bootstrap over dialogues."""
    return {
        group: {name: list(bootstrap_interval(of[name])) for name in ROUGE_NAMES}
        for group, of in scores.items()
    }


def dialogue_scores(runs: Sequence[Rows]) -> Scores:
    """Each dialogue's ROUGE, the mean over its references and then over the seeds' runs."""
    scored = [kept_scores(rows) for rows in runs]
    return {
        name: [mean(values) for values in zip(*(s.mean[name] for s in scored), strict=True)]
        for name in ROUGE_NAMES
    }


def mean_record(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One run's record as it is; of several, the first with means in it, their spread, and all of them."""
    if len(runs) == 1:
        return runs[0]
    means = {name: mean(run[name] for run in runs) for name in MEANS}
    means |= {best: mean(run[best] for run in runs) for best in BEST if best in runs[0]}
    spread = {name: stdev(run[name] for run in runs) for name in ROUGE_NAMES}
    shared = {name: value for name, value in runs[0].items() if name not in OF_ONE_RUN}
    return shared | means | {"spread": spread, "seeds": [run["seed"] for run in runs], "runs": runs}


def trivial_record(rows: Rows, lines: int) -> dict[str, float]:
    """ROUGE of each dialogue's first lines, taken as its summary."""
    predictions = ["\n".join(row["dialogue"].split("\n")[:lines]) for row in rows]
    scores = score_dialogues(predictions, [row["references"] for row in rows])
    return {name: mean(scores.mean[name]) for name in ROUGE_NAMES}


def gains(scores: Mapping[Any, Scores]) -> dict[str, float | None]:
    """ROUGE-1 above the base's, and LoRA's as a share of full's; None where full gained nothing."""
    base, full, lora = (mean(scores[method]["rouge1"]) for method in ("base", "full", "lora"))
    share = (lora - base) / (full - base) if full > base else None
    return {"full": full - base, "lora": lora - base, "lora_share_of_full": share}


def paired_record(ours: Scores, theirs: Scores) -> dict[str, Any]:
    """The paired test of ROUGE-1, dialogue by dialogue."""
    test = paired_test(ours["rouge1"], theirs["rouge1"])
    return {
        "metric": "rouge1",
        "difference": test.difference,
        "interval": list(test.interval),
        "p_value": test.p_value,
        "n": test.n,
    }


def samples(rows: Mapping[Any, list[Rows]]) -> list[dict[str, Any]]:
    """The first dialogues with a reference and what each arm wrote."""
    first = {method: runs[0] for method, runs in rows.items()}
    return [
        {
            "id": row["id"],
            "dialogue": row["dialogue"],
            "reference": row["references"][0],
            **{method: predicted[i]["prediction"] for method, predicted in first.items()},
        }
        for i, row in enumerate(next(iter(first.values()))[:SAMPLES])
    ]
