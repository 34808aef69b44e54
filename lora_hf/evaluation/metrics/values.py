"""What a metric says of texts: statistics of each example, and the score that they add up to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np

from lora_hf.evaluation.significance import (
    Aggregate,
    PairedTest,
    bootstrap_interval,
    paired_test,
    ratio_interval,
)
from lora_hf.run_files import RougeName


@dataclass(frozen=True)
class ScoreValues:
    """One score of n examples.

    Most scores are the mean of one value per example. A score of the corpus, such as BLEU, is made from sums:
    its examples have k statistics each, whose sums `aggregate` turns into the score.
    """

    statistics: np.ndarray
    """(n,) values whose mean is the score; with `aggregate` (n, k)."""
    aggregate: Aggregate | None = None

    @property
    def value(self) -> float:
        """Return the score."""
        if self.aggregate is None:
            return float(np.mean(self.statistics))
        return float(self.aggregate(self.statistics.sum(axis=0)))

    @property
    def exact(self) -> float:
        """Return the score; a mean is rounded once at its end, where `value` rounds each partial sum."""
        return self.value if self.aggregate is not None else float(mean(self.statistics.tolist()))

    def interval(self) -> list[float]:
        """Return the 95 % interval, by bootstrap over examples: [low, high]."""
        return list(bootstrap_interval(self.statistics, aggregate=self.aggregate))

    def by_example(self) -> list[float]:
        """Return the score of each example by itself."""
        alone = self.statistics if self.aggregate is None else self.aggregate(self.statistics)
        return [float(value) for value in alone]

    def against(self, other: "ScoreValues") -> PairedTest:
        """Return the paired test of this score against another system's."""
        return paired_test(self.statistics, other.statistics, aggregate=self.aggregate)

    def share_of(
        self, other: "ScoreValues", higher_is_better: bool = True
    ) -> tuple[float, list[float]] | None:
        """Return this score as a share of another system's, and its 95 % interval.

        Of a score that is better if it is lower, the share is the other's over this one's. None where the
        score below the line is 0.
        """
        above, below = (self, other) if higher_is_better else (other, self)
        if not below.value:
            return None
        interval = ratio_interval(above.statistics, below.statistics, self.aggregate)
        return above.exact / below.exact, list(interval)


def mean_of(runs: Sequence[ScoreValues]) -> ScoreValues:
    """Return the mean score of several runs on the same examples, such as those of several seeds."""
    first = runs[0]
    if len(runs) == 1:
        return first
    if first.aggregate is None:
        columns = zip(*(run.statistics.tolist() for run in runs), strict=True)
        return ScoreValues(np.array([mean(values) for values in columns]))
    aggregate, k, count = first.aggregate, first.statistics.shape[1], len(runs)

    def of_parts(sums: np.ndarray) -> np.ndarray:
        parts = [aggregate(sums[..., i * k : (i + 1) * k]) for i in range(count)]
        return np.asarray(np.mean(parts, axis=0))

    return ScoreValues(np.concatenate([run.statistics for run in runs], axis=1), of_parts)


@dataclass(frozen=True)
class Measured:
    """The scores of n predictions."""

    scores: Mapping[str, ScoreValues]
    best: Mapping[str, ScoreValues] = field(default_factory=dict)
    """By the best reference of each example, where an example has several and the metric takes their mean."""
    by_reference: Mapping[RougeName, list[list[float]]] = field(default_factory=dict)
    """ROUGE of each reference, which predictions.jsonl keeps."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What results.json says of the metric: how ROUGE divides words, the signature of sacrebleu."""
