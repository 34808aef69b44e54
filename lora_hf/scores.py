"""The scores of texts as data: names, labels and directions. `evaluation/metrics` computes them.

A metric gives one or several scores: ROUGE four, BLEU one. This module imports nothing heavy, because the
config checks names against it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One number by which models are compared; its name is a key of results.json."""

    name: str
    label: str
    """As tables and axes show it."""
    higher_is_better: bool = True
    scale: int = 1
    """The value of a perfect or an entirely wrong set of texts: 1, or 100 as some metrics are published."""

    @property
    def titled(self) -> str:
        """Return the label for a table's row, which says where lower values are better."""
        return self.label if self.higher_is_better else f"{self.label} (lower is better)"

    @property
    def sign(self) -> int:
        """Return 1 if higher values are better, otherwise -1."""
        return 1 if self.higher_is_better else -1

    def text(self, value: float, digits: int = 4, signed: bool = False) -> str:
        """Return a value with `digits` decimals on a scale of 1, and two fewer on a scale of 100."""
        places = digits if self.scale == 1 else max(digits - 2, 1)
        return f"{value:{'+' if signed else ''}.{places}f}"


METRICS: dict[str, tuple[Score, ...]] = {
    "rouge": (
        Score("rouge1", "ROUGE-1"),
        Score("rouge2", "ROUGE-2"),
        Score("rougeL", "ROUGE-L"),
        Score("rougeLsum", "ROUGE-Lsum"),
    ),
    "bleu": (Score("bleu", "BLEU", scale=100),),
    "chrf": (Score("chrf", "chrF", scale=100),),
    "ter": (Score("ter", "TER", higher_is_better=False, scale=100),),
    "squad": (Score("exact_match", "exact match", scale=100), Score("f1", "F1", scale=100)),
    "accuracy": (Score("accuracy", "accuracy"),),
    "macro_f1": (Score("macro_f1", "macro F1"),),
    "cer": (Score("cer", "CER", higher_is_better=False),),
    "wer": (Score("wer", "WER", higher_is_better=False),),
}
"""The scores of each metric. `evaluation.metrics.COMPUTED` has the functions, under the same names."""
