"""Score a model: on the validation split during training, and on the test split at the end."""

import json
import logging
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import EvalPrediction

from lora_hf import terminal
from lora_hf.config import GenerationConfig
from lora_hf.data.examples import Example
from lora_hf.distributed import all_gather, from_main, rank, shares, world_size
from lora_hf.evaluation.generate import generate_summaries
from lora_hf.evaluation.metrics import Measured, Scoring
from lora_hf.evaluation.metrics.rouge import from_dialogue_scores, rows_by_unicode
from lora_hf.evaluation.rouge import DialogueScores
from lora_hf.evaluation.words import choose_tokenizer, spaced_words
from lora_hf.files import write_text
from lora_hf.models.generation import check_tokens
from lora_hf.models.languages import decode
from lora_hf.run_files import ROUGE_NAMES
from lora_hf.run_records import PREDICTIONS_VERSION, WITHOUT_ROUGE, Prediction, Scores

LOGGED_SUMMARIES = 2
logger = logging.getLogger(__name__)


class ValidationScores:
    """`compute_metrics` of a Seq2SeqTrainer: the task's scores, and a few outputs in the log."""

    def __init__(self, tokenizer: Any, scoring: Scoring | None = None) -> None:
        self.tokenizer = tokenizer
        self.scoring = scoring or Scoring()

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        predictions, references = (
            self._decode(ids) for ids in (prediction.predictions, prediction.label_ids)
        )
        for written, reference in list(zip(predictions, references, strict=True))[:LOGGED_SUMMARIES]:
            logger.debug("reference: %s\ngenerated: %s", reference, written)
        words = [len(spaced_words(text)) for text in predictions]
        return from_main(lambda: self.score(predictions, references)) | {"words": float(np.mean(words))}

    def score(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """Return the scores of outputs, each with its reference."""
        measured = self.scoring.measure(predictions, [[text] for text in references])
        return {score.name: measured.scores[score.name].value for score in self.scoring.scores}

    def _decode(self, ids: Any) -> list[str]:
        ids = np.where(ids == -100, self.tokenizer.pad_token_id, ids)  # no tokenizer can decode -100
        return decode(self.tokenizer, ids)


def score_model(
    config: GenerationConfig,
    model: Any,
    tokenizer: Any,
    test: list[Example],
    sources: list[list[int]],
    max_new_tokens: int,
    fast_paths: bool = True,
    scoring: Scoring | None = None,
) -> tuple[Scores, list[Prediction]]:
    """Generate the outputs of the test split, divided among the run's processes, and score them.

    Args:
        config: generation options.
        model: any encoder-decoder model.
        tokenizer: its tokenizer.
        test: the sources with their references.
        sources: their token ids, prompt included.
        max_new_tokens: maximum length of an output in tokens.
        fast_paths: as in `generate_summaries`.
        scoring: the metrics; None scores summaries.

    Returns:
        The scores (`score_record` and `eval_seconds`), and the rows of predictions.jsonl.
    """
    scoring = scoring or Scoring()
    start = time.perf_counter()
    predictions = generate_outputs(config, model, tokenizer, sources, max_new_tokens, fast_paths)
    seconds = time.perf_counter() - start
    references = [list(example.references) for example in test]
    measured = from_main(lambda: scoring.measure(predictions, references))
    rows: list[Prediction] = []
    for i, (example, prediction) in enumerate(zip(test, predictions, strict=True)):
        row: Prediction = {
            "id": example.id,
            "dialogue": example.dialogue,
            "references": list(example.references),
            "prediction": prediction,
            "version": PREDICTIONS_VERSION if measured.by_reference else WITHOUT_ROUGE,
        }
        if measured.by_reference:
            row["rouge"] = {name: measured.by_reference[name][i] for name in ROUGE_NAMES}
        rows.append(row)
    scores = from_main(lambda: score_record(rows, scoring, measured))
    scores["eval_seconds"] = round(seconds, 2)
    scores.update(scoring.fields())  # type: ignore[typeddict-item]
    return scores, rows


def generate_outputs(
    config: GenerationConfig,
    model: Any,
    tokenizer: Any,
    sources: list[list[int]],
    max_new_tokens: int,
    fast_paths: bool = True,
) -> list[str]:
    """Generate an output for each source, divided among the run's processes; arguments of `score_model`."""
    own = shares([len(ids) for ids in sources], world_size())[rank()]
    written = summarize(config, model, tokenizer, [sources[i] for i in own], max_new_tokens, fast_paths)
    found = {i: text for part in all_gather(dict(zip(own, written, strict=True))) for i, text in part.items()}
    return [found[i] for i in range(len(sources))]


def summarize(
    config: GenerationConfig,
    model: Any,
    tokenizer: Any,
    sources: list[list[int]],
    max_new_tokens: int,
    fast_paths: bool = True,
    **options: Any,
) -> list[str]:
    """Call `generate_summaries` with the config's options, and show a progress bar on standard error.

    `options` are further keywords of `generate`; the config's own replace them.
    """
    check_tokens(model, config)
    with terminal.bar("generating", len(sources), "text") as progress:
        return generate_summaries(
            model,
            tokenizer,
            sources,
            max_new_tokens,
            batch_size=config.batch_size,
            batch_tokens=config.batch_tokens,
            fast_paths=fast_paths,
            on_batch=progress.advance,
            **(options | config.options()),
        )


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
