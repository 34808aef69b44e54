"""Score a model: on the validation split during training, and on the test split at the end."""

import json
import logging
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import EvalPrediction

from lora_hf.config import GenerationConfig
from lora_hf.data.examples import Example
from lora_hf.distributed import all_gather, from_main, is_main, rank, shares, world_size
from lora_hf.evaluation.generate import generate_summaries
from lora_hf.evaluation.rouge import DialogueScores, rouge_per_pair, score_dialogues
from lora_hf.evaluation.significance import bootstrap_interval
from lora_hf.evaluation.words import ENGLISH, choose_tokenizer
from lora_hf.files import write_text
from lora_hf.models.generation import check_tokens
from lora_hf.models.languages import decode
from lora_hf.run_files import ROUGE_NAMES
from lora_hf.run_records import PREDICTIONS_VERSION, Prediction, Scores

LOGGED_SUMMARIES = 2
logger = logging.getLogger(__name__)


class ValidationRouge:
    """`compute_metrics` of a Seq2SeqTrainer: ROUGE from 0 to 1, and a few summaries in the log."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        predictions, references = (
            self._decode(ids) for ids in (prediction.predictions, prediction.label_ids)
        )
        for written, reference in list(zip(predictions, references, strict=True))[:LOGGED_SUMMARIES]:
            logger.info("reference: %s\ngenerated: %s", reference, written)
        scores = from_main(lambda: rouge_per_pair(predictions, references))
        words = [len(text.split()) for text in predictions]
        return {name: float(np.mean(scores[name])) for name in ROUGE_NAMES} | {"words": float(np.mean(words))}

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
) -> tuple[Scores, list[Prediction]]:
    """Summarize the test dialogues, divided among the run's processes, and score them.

    Args:
        config: generation options.
        model: any encoder-decoder model.
        tokenizer: its tokenizer.
        test: the dialogues with their references.
        sources: their token ids, prompt included.
        max_new_tokens: maximum length of a summary in tokens.
        fast_paths: as in `generate_summaries`.

    Returns:
        The scores (`rouge_record` and `eval_seconds`), and the rows of predictions.jsonl.
    """
    start = time.perf_counter()
    own = shares([len(ids) for ids in sources], world_size())[rank()]
    written = summarize(config, model, tokenizer, [sources[i] for i in own], max_new_tokens, fast_paths)
    found = {i: text for part in all_gather(dict(zip(own, written, strict=True))) for i, text in part.items()}
    predictions = [found[i] for i in range(len(sources))]
    seconds = time.perf_counter() - start
    rouge = from_main(lambda: score_dialogues(predictions, [example.references for example in test]))
    rows: list[Prediction] = [
        {
            "id": example.id,
            "dialogue": example.dialogue,
            "references": list(example.references),
            "prediction": prediction,
            "version": PREDICTIONS_VERSION,
            "rouge": {name: rouge.by_reference[name][i] for name in ROUGE_NAMES},
        }
        for i, (example, prediction) in enumerate(zip(test, predictions, strict=True))
    ]
    scores = from_main(lambda: rouge_record(rows, rouge))
    scores["eval_seconds"] = round(seconds, 2)
    return scores, rows


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
    columns = (TextColumn("summarizing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not (console.is_terminal and is_main())
    ) as progress:
        task = progress.add_task("", total=len(sources))
        return generate_summaries(
            model,
            tokenizer,
            sources,
            max_new_tokens,
            batch_size=config.batch_size,
            batch_tokens=config.batch_tokens,
            fast_paths=fast_paths,
            on_batch=lambda rows: progress.advance(task, rows),
            **(options | config.options()),
        )


def rouge_record(rows: list[Prediction], rouge: DialogueScores | None = None) -> Scores:
    """Average the ROUGE of predictions over references, then over dialogues, with 95 % intervals.

    Args:
        rows: those of predictions.jsonl; the ROUGE that they hold is not used.
        rouge: their scores; None scores them.

    Returns:
        The scores with mean lengths in words; `<name>_best`, by each dialogue's best reference, is
        there if a dialogue has several.
    """
    rouge = rouge or score_rows(rows)
    references = [reference for row in rows for reference in row["references"]]
    scores: dict[str, Any] = {"n_examples": len(rows)}
    for name in ROUGE_NAMES:
        scores[name] = float(np.mean(rouge.mean[name]))
        scores[f"{name}_interval"] = list(bootstrap_interval(rouge.mean[name]))
        if len(references) > len(rows):
            scores[f"{name}_best"] = float(np.mean(rouge.best[name]))
    tokenizer = choose_tokenizer(references)
    if tokenizer.name != ENGLISH:
        logger.info("ROUGE: the references are not English; their words are counted by Unicode's rules")
    scores["rouge_tokenizer"] = str(tokenizer)
    scores["mean_words"] = float(np.mean([len(row["prediction"].split()) for row in rows]))
    scores["reference_words"] = float(np.mean([len(reference.split()) for reference in references]))
    return cast(Scores, scores)


def score_rows(rows: list[Prediction]) -> DialogueScores:
    """Score the predictions of predictions.jsonl."""
    return score_dialogues([row["prediction"] for row in rows], [row["references"] for row in rows])


def kept_scores(rows: list[Prediction]) -> DialogueScores:
    """Return the ROUGE that predictions.jsonl holds; score the rows if an older version wrote them."""
    if any(row.get("version") != PREDICTIONS_VERSION for row in rows):
        return score_rows(rows)
    return DialogueScores({name: [row["rouge"][name] for row in rows] for name in ROUGE_NAMES})


def write_predictions(file: Path, rows: list[Prediction]) -> None:
    """Write predictions.jsonl: one JSON object per line."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
