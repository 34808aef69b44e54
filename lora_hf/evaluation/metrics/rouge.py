"""ROUGE as a metric: the mean over an example's references (`evaluation/rouge.py`)."""

import numpy as np

from lora_hf.evaluation.metrics.values import Measured, ScoreValues
from lora_hf.evaluation.rouge import DialogueScores, score_dialogues
from lora_hf.evaluation.words import ENGLISH, RougeTokenizer, choose_tokenizer, has_words

BY_UNICODE = "rouge_unicode_examples"
"""Key in results.json: how many examples of an English test set are compared by Unicode's words."""


def rouge(predictions: list[str], references: list[list[str]], language: str | None) -> Measured:
    """Score each prediction against each of its references."""
    scores = score_dialogues(predictions, references, language)
    return from_dialogue_scores(scores, predictions, references, language)


def from_dialogue_scores(
    scores: DialogueScores, predictions: list[str], references: list[list[str]], language: str | None
) -> Measured:
    """Return known ROUGE as the metric's scores."""
    tokenizer = choose_tokenizer([text for texts in references for text in texts], language)
    by_unicode = rows_by_unicode(predictions, references, tokenizer)
    facts = {"rouge_tokenizer": str(tokenizer)} | ({BY_UNICODE: by_unicode} if by_unicode else {})
    if wordless := sum(not all(map(has_words, texts)) for texts in references):
        of_all = f"{wordless:,} of {len(references):,} examples"
        facts["rouge_note"] = f"{of_all} have references without letters or digits, which score 0"
    has_several = sum(map(len, references)) > len(references)
    return Measured(
        scores={name: ScoreValues(np.array(values)) for name, values in scores.mean.items()},
        best={name: ScoreValues(np.array(v)) for name, v in scores.best.items()} if has_several else {},
        by_reference=dict(scores.by_reference),
        facts=facts,
    )


def rows_by_unicode(predictions: list[str], references: list[list[str]], tokenizer: RougeTokenizer) -> int:
    """Return the number of examples with a pair whose words the tokenizer leaves to Unicode's rules."""
    return sum(
        any(tokenizer.for_pair(prediction, text) != tokenizer for text in texts)
        for prediction, texts in zip(predictions, references, strict=True)
    )


def is_english(facts: dict[str, str]) -> bool:
    """Return whether ROUGE's words were counted by the English rules."""
    return facts.get("rouge_tokenizer", ENGLISH).startswith(ENGLISH)
