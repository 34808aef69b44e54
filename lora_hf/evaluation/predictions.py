"""Scores of the rows of predictions.jsonl: from texts alone, without loading a model library."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np

from lora_hf.evaluation.metrics import Measured, Scoring
from lora_hf.evaluation.metrics.rouge import from_dialogue_scores, rows_by_unicode
from lora_hf.evaluation.rouge import DialogueScores
from lora_hf.evaluation.words import choose_tokenizer, spaced_words
from lora_hf.files import write_text
from lora_hf.run_files import ROUGE_NAMES
from lora_hf.run_records import Prediction, Scores


def score_record(
    rows: list[Prediction], scoring: Scoring | None = None, measured: Measured | None = None
) -> Scores:
    """Average the scores of predictions over references, then over examples, with 95 % intervals.

    Args:
        rows: those of predictions.jsonl; the ROUGE that they hold is not used.
        scoring: the metrics; None scores summaries.
        measured: their scores; None scores them.

    Returns:
        The scores with mean lengths in words; `<name>_best`, by each example's best reference, is there if
        an example has several and the metric takes their mean.
    """
    scoring = scoring or Scoring()
    measured = measured or measure_rows(rows, scoring)
    references = [reference for row in rows for reference in row["references"]]
    scores: dict[str, Any] = {"n_examples": len(rows)} | scoring.record(measured)
    scores["mean_words"] = float(np.mean([len(spaced_words(row["prediction"])) for row in rows]))
    scores["reference_words"] = float(np.mean([len(spaced_words(reference)) for reference in references]))
    return cast(Scores, scores)


def measure_rows(rows: list[Prediction], scoring: Scoring) -> Measured:
    """Score the predictions of predictions.jsonl."""
    return scoring.measure([row["prediction"] for row in rows], [row["references"] for row in rows])


def kept_scores(rows: list[Prediction], scoring: Scoring) -> Measured:
    """Return the scores of predictions.jsonl, with the ROUGE that it holds.

    An older version wrote none, or took all texts beside English references as English.
    """
    references, predictions = [row["references"] for row in rows], [row["prediction"] for row in rows]
    if "rouge" not in scoring.task.metrics or any(
        row.get("version", 1) == 1 or "rouge" not in row for row in rows
    ):
        return measure_rows(rows, scoring)
    tokenizer = choose_tokenizer([text for texts in references for text in texts], scoring.language)
    if rows_by_unicode(predictions, references, tokenizer):
        return measure_rows(rows, scoring)
    held = DialogueScores({name: [row["rouge"][name] for row in rows] for name in ROUGE_NAMES})
    known = {"rouge": from_dialogue_scores(held, predictions, references, scoring.language)}
    return scoring.measure(predictions, references, known)


def write_predictions(file: Path, rows: list[Prediction]) -> None:
    """Write predictions.jsonl: one JSON object per line."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
