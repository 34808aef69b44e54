"""ROUGE as a metric: the mean over an example's references (`evaluation/rouge.py`)."""

import numpy as np

from lora_hf.evaluation.metrics.values import Measured, ScoreValues
from lora_hf.evaluation.rouge import DialogueScores, score_dialogues
from lora_hf.evaluation.words import ENGLISH, choose_tokenizer


def rouge(predictions: list[str], references: list[list[str]], language: str | None) -> Measured:
    """Score each prediction against each of its references."""
    return from_dialogue_scores(score_dialogues(predictions, references, language), references, language)


def from_dialogue_scores(
    scores: DialogueScores, references: list[list[str]], language: str | None
) -> Measured:
    """Return known ROUGE as the metric's scores."""
    tokenizer = choose_tokenizer([text for texts in references for text in texts], language)
    has_several = sum(map(len, references)) > len(references)
    return Measured(
        scores={name: ScoreValues(np.array(values)) for name, values in scores.mean.items()},
        best={name: ScoreValues(np.array(v)) for name, v in scores.best.items()} if has_several else {},
        by_reference=dict(scores.by_reference),
        facts={"rouge_tokenizer": str(tokenizer)},
    )


def is_english(facts: dict[str, str]) -> bool:
    """Return whether ROUGE's words were counted by the English rules."""
    return facts.get("rouge_tokenizer", ENGLISH).startswith(ENGLISH)
