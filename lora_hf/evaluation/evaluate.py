"""Score a model: on the validation split during training, and on the test split at the end."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import EvalPrediction

from lora_hf.config import GenerationConfig
from lora_hf.data.examples import Example
from lora_hf.distributed import all_gather, from_main, is_main, rank, shares, world_size
from lora_hf.evaluation.generate import generate_summaries
from lora_hf.evaluation.rouge import ROUGE_NAMES, rouge_per_pair, score_dialogues
from lora_hf.evaluation.significance import bootstrap_interval
from lora_hf.files import write_text

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
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts


def score_model(
    config: GenerationConfig,
    model: Any,
    tokenizer: Any,
    test: list[Example],
    sources: list[list[int]],
    max_new_tokens: int,
    fast_paths: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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
    rows = [
        {"id": e.id, "dialogue": e.dialogue, "references": list(e.references), "prediction": prediction}
        for e, prediction in zip(test, predictions, strict=True)
    ]
    return from_main(lambda: rouge_record(rows)) | {"eval_seconds": round(seconds, 2)}, rows


def summarize(
    config: GenerationConfig,
    model: Any,
    tokenizer: Any,
    sources: list[list[int]],
    max_new_tokens: int,
    fast_paths: bool = True,
) -> list[str]:
    """Call `generate_summaries` with the config's options, and show a progress bar on standard error."""
    options = config.model_dump(exclude={"max_new_tokens"})
    if config.num_beams == 1:
        del options["length_penalty"]
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
            fast_paths=fast_paths,
            on_batch=lambda rows: progress.advance(task, rows),
            **options,
        )


def rouge_record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ROUGE of the rows of predictions.jsonl, with 95 % intervals and mean lengths in words.

    A score is the mean over dialogues of the mean over references; `<name>_best`, which takes the best
    reference of each dialogue, is added if a dialogue has several.
    """
    scores = score_dialogues([row["prediction"] for row in rows], [row["references"] for row in rows])
    record: dict[str, Any] = {"n_examples": len(rows)}
    for name in ROUGE_NAMES:
        record[name] = float(np.mean(scores.mean[name]))
        record[f"{name}_interval"] = list(bootstrap_interval(scores.mean[name]))
        if any(len(row["references"]) > 1 for row in rows):
            record[f"{name}_best"] = float(np.mean(scores.best[name]))
    references = [reference for row in rows for reference in row["references"]]
    record["mean_words"] = float(np.mean([len(row["prediction"].split()) for row in rows]))
    record["reference_words"] = float(np.mean([len(reference.split()) for reference in references]))
    return record


def write_predictions(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write predictions.jsonl: one JSON object per line."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
