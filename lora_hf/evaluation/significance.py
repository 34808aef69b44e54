"""Confidence intervals of a score, and tests of whether two systems differ.

The unit is the dialogue: the references of one dialogue share a prediction, so rows are not independent and
resampling rows would make intervals too narrow. Give every function here one value per dialogue.

    interval   percentile bootstrap (Efron 1979; for summaries and translations Koehn 2004, "Statistical
               Significance Tests for Machine Translation Evaluation")
    p value    paired randomisation test, the recommended test where a score's distribution is unknown (Noreen
               1989; Dror et al. 2018, "The Hitchhiker's Guide to Testing Statistical Significance in NLP")

Both are random, and the same for the same seed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS_AT_ONCE = 1_000_000  # bounds the memory: some 25 MB, whatever the number of resamples

SIGNIFICANCE_LEVEL = 0.05
"""Family-wise error rate; each of k tests is made at level 0.05 / k (Bonferroni)."""

Values = np.ndarray  # (n,) float64
Draw = Callable[[int], np.ndarray]  # k -> (k,) resampled means


@dataclass(frozen=True)
class PairedTest:
    """Two systems compared on the same dialogues."""

    difference: float
    """mean(a) - mean(b)"""
    interval: tuple[float, float]
    """Bootstrap interval of the difference, over dialogues."""
    p_value: float
    """Two-sided: probability of a difference at least this large if the two systems were interchangeable."""
    n: int
    """Number of dialogues."""


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`.

    Args:
        values: one value per dialogue, (n,).
        confidence: share of resamples inside the interval, between 0 and 1.
        resamples: number of times n dialogues are drawn with replacement.

    Returns:
        low, high; both equal the value if n is 1.

    Raises:
        ValueError: no values, one that is not finite, or a confidence or number of resamples out of range.
    """
    array = _checked("values", values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1")
    rng = np.random.default_rng(seed)
    n = len(array)
    means = _resample(lambda k: array[rng.integers(0, n, (k, n))].mean(axis=1), n, resamples)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_test(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedTest:
    """Test whether system a scores differently from system b on the same dialogues.

    If there is no difference, the two scores of a dialogue may be swapped, which flips the sign of their
    difference: p is the share of random sign patterns whose mean is at least as far from 0 as the observed
    one. The observed pattern counts as one of them, so p is never 0 (Phipson and Smyth 2010).

    Args:
        a: one value per dialogue, (n,).
        b: the other system's, (n,); `a[i]` and `b[i]` belong to the same dialogue.
        confidence: as in `bootstrap_interval`.
        resamples: as in `bootstrap_interval`.
        seed: random seed of the sign patterns.

    Raises:
        ValueError: as in `bootstrap_interval`, or a and b differ in length.
    """
    first, second = _checked("a", a), _checked("b", b)
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values, b has {len(second)}: they must be the same dialogues")
    delta = first - second
    n = len(delta)
    rng = np.random.default_rng(seed)
    flipped = _resample(lambda k: (1.0 - 2.0 * rng.integers(0, 2, (k, n))) @ delta / n, n, resamples)
    observed = abs(float(delta.mean()))
    # Sums in another order differ in the last bits; a pattern that ties with the observed one must count.
    as_far = np.count_nonzero(np.abs(flipped) >= observed - 1e-12 * np.abs(delta).max())
    return PairedTest(
        difference=float(delta.mean()),
        interval=bootstrap_interval(delta.tolist(), confidence, resamples, seed),
        p_value=(1 + int(as_far)) / (1 + resamples),
        n=n,
    )


def _checked(name: str, values: Sequence[float]) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must hold one value per dialogue, at least one; its shape is {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not a finite number")
    return array


def _resample(draw: Draw, n: int, resamples: int) -> Values:
    """Draw `resamples` means in chunks of about `_DRAWS_AT_ONCE` values."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    return np.concatenate([draw(k) for k in _chunks(resamples, max(1, _DRAWS_AT_ONCE // n))])


def _chunks(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)
