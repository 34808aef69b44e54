"""What a comparison says, computed from the arms' records and predictions: plain values in and out."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from lora_hf.evaluation.rouge import ROUGE_NAMES, score_dialogues
from lora_hf.evaluation.significance import bootstrap_interval, paired_test

Rows = list[dict[str, Any]]
Scores = dict[str, list[float]]
TRIVIAL = {"first line": 1, "first three lines": 3}
SAMPLES = 5
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
        summaries that cost nothing), `gains` over the base in ROUGE-1, `intervals` (95 %, over
        dialogues), `paired_test` of LoRA against full, and `samples`.
    """
    scores = {method: dialogue_scores(runs) for method, runs in rows.items()}
    first = rows["base"][0]
    intervals = {m: {n: list(bootstrap_interval(s[n])) for n in ROUGE_NAMES} for m, s in scores.items()}
    return {
        "arms": {method: mean_record(runs) for method, runs in records.items()},
        "trivial": {name: trivial_record(first, lines) for name, lines in TRIVIAL.items()},
        "gains": gains(scores),
        "intervals": intervals,
        "paired_test": lora_against_full(scores),
        "samples": samples(rows),
    }


def dialogue_scores(runs: Sequence[Rows]) -> Scores:
    """Each dialogue's ROUGE, the mean over its references and then over the seeds' runs."""
    scored = [
        score_dialogues([row["prediction"] for row in rows], [row["references"] for row in rows])
        for rows in runs
    ]
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


def lora_against_full(scores: Mapping[Any, Scores]) -> dict[str, Any]:
    """The paired test of ROUGE-1, dialogue by dialogue."""
    test = paired_test(scores["lora"]["rouge1"], scores["full"]["rouge1"])
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
        for i, row in enumerate(first["base"][:SAMPLES])
    ]
