"""Scores of short answers and labels.

exact match, F1   as the official script of SQuAD 1.1 takes them (Rajpurkar et al. 2016), from 0 to 100:
                  texts in lower case, without punctuation, articles and extra spaces; F1 over words; of
                  several references the best one counts. Punctuation of other scripts is taken out too, and
                  words of scripts without spaces are Unicode's
accuracy          share of outputs that equal a reference, white space at the ends apart
macro F1          mean over the labels of the references of each label's F1; an output that is none of
                  them is a miss of the label that it should be
"""

import re
import string
from collections import Counter
from unicodedata import normalize

import numpy as np
import regex

from lora_hf.evaluation.metrics.values import Measured, ScoreValues
from lora_hf.evaluation.words import ENGLISH, choose_tokenizer, spaced_words

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ALL_MARKS, _MARKS = regex.compile(r"\p{P}"), regex.compile(r"[\p{P}--[‐-―‘’“”…]]", regex.V1)
"""Punctuation that is not ASCII's, and such that no English text has; the official script leaves it."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad(predictions: list[str], references: list[list[str]], language: str | None) -> Measured:
    """Score by SQuAD's exact match and F1."""
    exact, f1 = [], []
    tokenizer = choose_tokenizer((text for texts in references for text in texts), language)
    marks = _MARKS if tokenizer.name == ENGLISH else _ALL_MARKS
    for prediction, texts in zip(predictions, references, strict=True):
        answer, known = normalized(prediction, marks), [normalized(text, marks) for text in texts]
        exact.append(100.0 * (answer in known))
        f1.append(100.0 * max(_word_f1(spaced_words(answer), spaced_words(text)) for text in known))
    return Measured({"exact_match": ScoreValues(np.array(exact)), "f1": ScoreValues(np.array(f1))})


def normalized(text: str, marks: "regex.Pattern[str] | None" = None) -> str:
    """Return a text as SQuAD's script compares it, without the further punctuation `marks`."""
    if not text.isascii():
        text = normalize("NFC", text if marks is None else marks.sub("", text))
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(prediction: list[str], reference: list[str]) -> float:
    same = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * same / (len(prediction) + len(reference)) if same else 0.0


def accuracy(predictions: list[str], references: list[list[str]], language: str | None) -> Measured:
    """Score by the share of outputs that equal one of their references."""
    rows = zip(predictions, references, strict=True)
    right = [float(prediction.strip() in _stripped(texts)) for prediction, texts in rows]
    return Measured({"accuracy": ScoreValues(np.array(right))})


def macro_f1(predictions: list[str], references: list[list[str]], language: str | None) -> Measured:
    """Score by the mean of the labels' F1. The first reference is the label, unless the output is another."""
    outputs = [text.strip() for text in predictions]
    truths = [
        output if output in known else known[0]
        for output, known in zip(outputs, map(_stripped, references), strict=True)
    ]
    labels = {
        label: i for i, label in enumerate(sorted({t for texts in references for t in _stripped(texts)}))
    }
    # three columns per label: true, predicted, both
    statistics = np.zeros((len(outputs), 3, len(labels)))
    for row, output, truth in zip(statistics, outputs, truths, strict=True):
        row[0, labels[truth]] = 1
        if output in labels:
            row[1, labels[output]] = 1
            row[2, labels[output]] = output == truth
    return Measured({"macro_f1": ScoreValues(statistics.reshape(len(outputs), -1), _macro_f1)})


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """Return the mean F1 over the labels that occur; sums: (..., 3 * labels)."""
    true, predicted, both = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    f1 = 2 * both / np.maximum(true + predicted, 1)
    occurs = true > 0
    return np.asarray((f1 * occurs).sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1))


def _stripped(texts: list[str]) -> list[str]:
    return [text.strip() for text in texts]
