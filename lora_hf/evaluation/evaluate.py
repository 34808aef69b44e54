"""Score a model: on the validation split during training, and on the test split at the end."""

import logging
import time
from typing import Any

import numpy as np
from transformers import EvalPrediction

from lora_hf import terminal
from lora_hf.config import GenerationConfig
from lora_hf.data.examples import Example
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.distributed import all_gather, from_main, rank, shares, world_size
from lora_hf.evaluation.generate import generate_summaries
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.predictions import score_record
from lora_hf.evaluation.words import spaced_words
from lora_hf.models.generation import check_tokens
from lora_hf.models.languages import decode
from lora_hf.run_files import ROUGE_NAMES
from lora_hf.run_records import PREDICTIONS_VERSION, WITHOUT_ROUGE, Prediction, Scores

LOGGED_SUMMARIES = 2
logger = logging.getLogger(__name__)


class ValidationScores:
    """`compute_metrics` of a Seq2SeqTrainer: the task's scores, and a few outputs in the log.

    Args:
        tokenizer: the model's.
        scoring: the metrics; None scores summaries.
        rows: those that are evaluated. Outputs are compared with their whole references, as those of the
            test split are, and not with labels, which `max_target_length` may have cut.
    """

    def __init__(
        self, tokenizer: Any, scoring: Scoring | None = None, rows: TokenizedDialogues | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.scoring = scoring or Scoring()
        self._texts: dict[tuple[int, ...], list[str]] = {}
        for row, text in zip(rows.rows, rows.references, strict=True) if rows else ():
            self._texts.setdefault(tuple(row["labels"]), []).append(text)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        predictions = self._decode(prediction.predictions)
        references = self._references(prediction.label_ids)
        for written, reference in list(zip(predictions, references, strict=True))[:LOGGED_SUMMARIES]:
            logger.debug("reference: %s\ngenerated: %s", reference, written)
        words = [len(spaced_words(text)) for text in predictions]
        return from_main(lambda: self.score(predictions, references)) | {"words": float(np.mean(words))}

    def score(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """Return the scores of outputs, each with its reference."""
        measured = self.scoring.measure(predictions, [[text] for text in references])
        return {score.name: measured.scores[score.name].value for score in self.scoring.scores}

    def _references(self, label_ids: Any) -> list[str]:
        """Return the text of each row of labels, (rows, length), in whichever order they come."""
        texts = self._decode(label_ids)
        left = {labels: iter(known) for labels, known in self._texts.items()}
        for number, ids in enumerate(np.asarray(label_ids)):
            texts[number] = next(left.get(tuple(ids[ids != -100].tolist()), iter(())), texts[number])
        return texts

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
