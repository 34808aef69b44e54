"""BLEU, chrF and TER by sacrebleu, from 0 to 100, over any number of references per example.

    BLEU   Papineni et al. 2002; tokenizer 13a, for Chinese zh, and for Japanese and Korean MeCab where it is
           installed, otherwise characters; characters of Thai, Lao, Khmer and Burmese
    chrF   Popović 2015
    TER    Snover et al. 2006; lower is better; over characters of Chinese and Japanese

sacrebleu gives statistics of each example that add up to the corpus's, and makes the score of their sums. Two
methods of its common base class do this (`INTERNALS`), so its next major version is excluded.
"""

from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import regex

from lora_hf.errors import UserError
from lora_hf.evaluation.metrics.errors import SPACELESS_NOTE
from lora_hf.evaluation.metrics.packages import imported
from lora_hf.evaluation.metrics.values import Measured, ScoreValues
from lora_hf.evaluation.words import is_spaceless
from lora_hf.language_codes import primary_code

INTERNALS = ("_extract_corpus_statistics", "_compute_score_from_stats")
"""Private methods of `sacrebleu.metrics.base.Metric` in use."""
PACKAGE = "sacrebleu"
MECAB = {"ja": "ja-mecab", "ko": "ko-mecab"}
_CODES = {"zh": "zh", "yue": "zh", "ja": "ja", "ko": "ko", "th": "th", "lo": "lo", "km": "km", "my": "my"}
ASIAN = ("zh", "ja")
_KANA, _HAN, _LETTER = (
    regex.compile(r"[\p{Hiragana}\p{Katakana}]"),
    regex.compile(r"\p{Han}"),
    regex.compile(r"\p{L}"),
)
_SCRIPTS = {
    code: regex.compile(rf"\p{{{name}}}")
    for code, name in {"ko": "Hangul", "th": "Thai", "lo": "Lao", "km": "Khmer", "my": "Myanmar"}.items()
}
"""Scripts of one language each, beside those of Chinese and Japanese."""


def of_sacrebleu(
    name: str, predictions: list[str], references: list[list[str]], language: str | None
) -> Measured:
    """Score by one metric of sacrebleu: `BLEU`, `CHRF` or `TER`."""
    code = _code(references, language)
    metric = _metric(name, code)
    streams = [list(stream) for stream in zip_longest(*references)]  # None where an example has fewer
    statistics = np.array(metric._extract_corpus_statistics(predictions, streams), dtype=np.float64)

    def aggregate(sums: np.ndarray) -> np.ndarray:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [metric._compute_score_from_stats(row.tolist()).score for row in flat]
        return np.array(scores).reshape(sums.shape[:-1])

    key = name.lower()
    signature = str(metric.get_signature())
    facts = {f"{key}_signature": signature}
    if name == "TER" and code not in ASIAN and is_spaceless(t for texts in references for t in texts):
        facts[f"{key}_note"] = SPACELESS_NOTE
    return Measured({key: ScoreValues(statistics, aggregate)}, facts=facts)


bleu: Callable[..., Measured] = partial(of_sacrebleu, "BLEU")
chrf: Callable[..., Measured] = partial(of_sacrebleu, "CHRF")
ter: Callable[..., Measured] = partial(of_sacrebleu, "TER")


def _metric(name: str, code: str | None) -> Any:
    metrics = imported(f"{PACKAGE}.metrics")
    if name == "BLEU":
        return metrics.BLEU(tokenize=_bleu_tokenizer(metrics, code))
    if name == "TER" and code in ASIAN:  # sacrebleu divides these characters in normalized texts alone
        return metrics.TER(normalized=True, asian_support=True)
    return getattr(metrics, name)()


def _code(references: list[list[str]], language: str | None) -> str | None:
    """Return the language if it is one of `_CODES`, else by the script of the references."""
    code = _CODES.get(primary_code(language) or "")
    return code or _by_script("".join(text for texts in references for text in texts))


def _bleu_tokenizer(metrics: Any, code: str | None) -> str:
    if code is None:
        return "13a"
    if code not in MECAB:
        return "zh" if code == "zh" else "char"
    try:
        metrics.BLEU(tokenize=MECAB[code])
    except Exception:  # MeCab or its dictionary is missing, which sacrebleu reports in several ways
        return "char"
    return MECAB[code]


def _by_script(text: str) -> str | None:
    letters = len(_LETTER.findall(text))
    if text.isascii() or not letters:
        return None
    if len(_KANA.findall(text)) > 0.1 * letters:
        return "ja"
    if len(_HAN.findall(text)) > 0.5 * letters:
        return "zh"
    return next((code for code, one in _SCRIPTS.items() if len(one.findall(text)) > 0.5 * letters), None)


def check() -> None:
    """Raise a UserError if sacrebleu is missing, or lacks what is used here."""
    base = imported(f"{PACKAGE}.metrics.base")
    if missing := [name for name in INTERNALS if not hasattr(base.Metric, name)]:
        raise UserError(f"this version of sacrebleu has no {missing[0]}: pip install 'lora_hf[metrics]'")
