"""Confidence intervals of a score, and tests of whether two systems differ.

The unit is the example, such as a dialogue: the references of one example share a prediction, so rows are not
independent and resampling rows would make intervals too narrow. Give every function here one row per example:
a value whose mean is the score, or, for a score of the whole corpus such as BLEU, the example's statistics,
which `aggregate` turns into the score once they are summed.

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


def is_significant(p_value: float, tests: int = 1) -> bool:
    """Return whether one of `tests` tests finds a difference at `SIGNIFICANCE_LEVEL` for all of them."""
    return p_value < SIGNIFICANCE_LEVEL / tests


Values = np.ndarray  # (n,) float64, or (n, k) with an aggregate
Aggregate = Callable[[np.ndarray], np.ndarray]
"""Sums of statistics over examples, (..., k) -> scores (...)."""
Draw = Callable[[int], np.ndarray]  # k -> (k,) resampled means


@dataclass(frozen=True)
class PairedTest:
    """Two systems compared on the same examples."""

    difference: float
    """score(a) - score(b)"""
    interval: tuple[float, float]
    """Bootstrap interval of the difference, over examples."""
    p_value: float
    """Two-sided: probability of a difference at least this large if the two systems were interchangeable."""
    n: int
    """Number of examples."""


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    aggregate: Aggregate | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, or of the score that `aggregate` makes of them.

    Args:
        values: one value per example, (n,); with `aggregate` its statistics, (n, k).
        confidence: share of resamples inside the interval, between 0 and 1.
        resamples: number of times n examples are drawn with replacement.
        seed: random seed of the draws.
        aggregate: makes a score of summed statistics; None takes the mean of the values.

    Returns:
        low, high; both equal the score if n is 1.

    Raises:
        ValueError: no values, one that is not finite, or a confidence or number of resamples out of range.
    """
    array = _checked("values", values, aggregate)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1")
    rng = np.random.default_rng(seed)
    n = len(array)
    if aggregate is None:
        scores = _resample(lambda k: array[rng.integers(0, n, (k, n))].mean(axis=1), n, resamples)
    else:
        scores = _resample(lambda k: aggregate(_draw_sums(rng, array, k)), n, resamples)
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_test(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    aggregate: Aggregate | None = None,
) -> PairedTest:
    """Test whether system a scores differently from system b on the same examples.

    If there is no difference, the outputs of an example may be swapped. For a mean this flips the sign of
    their difference: p is the share of random sign patterns whose mean is at least as far from 0 as the
    observed one. For a score of the corpus p is the share of random swaps whose scores differ at least as
    much (approximate randomization). The observed pattern counts as one of them, so p is never 0 (Phipson
    and Smyth 2010).

    Args:
        a: one value per example, (n,), or its statistics, (n, k); as in `bootstrap_interval`.
        b: the other system's, of the same shape; `a[i]` and `b[i]` belong to the same example.
        confidence: as in `bootstrap_interval`.
        resamples: as in `bootstrap_interval`.
        seed: random seed of the patterns.
        aggregate: as in `bootstrap_interval`.

    Raises:
        ValueError: as in `bootstrap_interval`, or a and b differ in length.
    """
    first, second = _checked("a", a, aggregate), _checked("b", b, aggregate)
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values, b has {len(second)}: they must be the same examples")
    n = len(first)
    rng = np.random.default_rng(seed)
    if aggregate is not None:
        return _paired_corpus_test(first, second, confidence, resamples, rng, seed, aggregate)
    delta = first - second
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


def _paired_corpus_test(
    first: Values,
    second: Values,
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
    seed: int,
    aggregate: Aggregate,
) -> PairedTest:
    """Compare two systems in a score of the corpus, by swapping and by drawing whole examples."""
    n, k = first.shape
    totals, both = first.sum(axis=0), (first + second).sum(axis=0)

    def swapped(draws: int) -> np.ndarray:
        ours = totals + rng.integers(0, 2, (draws, n)).astype(np.float64) @ (second - first)
        return aggregate(ours) - aggregate(both - ours)

    def drawn(draws: int) -> np.ndarray:
        sums = _draw_sums(of_interval, np.concatenate([first, second], axis=1), draws)
        return aggregate(sums[:, :k]) - aggregate(sums[:, k:])

    difference = float(aggregate(totals) - aggregate(second.sum(axis=0)))
    distances = np.abs(_resample(swapped, n, resamples))
    as_far = np.count_nonzero(distances >= abs(difference) - 1e-9 * max(abs(difference), 1e-3))
    of_interval = np.random.default_rng(seed)
    low, high = np.quantile(_resample(drawn, n, resamples), [(1 - confidence) / 2, (1 + confidence) / 2])
    return PairedTest(difference, (float(low), float(high)), (1 + int(as_far)) / (1 + resamples), n)


def ratio_interval(
    a: np.ndarray,
    b: np.ndarray,
    aggregate: Aggregate | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of score(a) / score(b), two systems on the same examples.

    Resamples in which score(b) is 0 are left out.

    Args:
        a: as in `paired_test`.
        b: as in `paired_test`.
        aggregate: as in `bootstrap_interval`.
        confidence: as in `bootstrap_interval`.
        resamples: as in `bootstrap_interval`.
        seed: random seed of the draws.

    Raises:
        ValueError: as in `paired_test`, or score(b) is 0 in every resample.
    """
    first, second = _checked("a", a, aggregate), _checked("b", b, aggregate)
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values, b has {len(second)}: they must be the same examples")
    both = np.concatenate([first.reshape(len(first), -1), second.reshape(len(second), -1)], axis=1)
    k, n = both.shape[1] // 2, len(both)
    rng = np.random.default_rng(seed)

    def ratios(draws: int) -> np.ndarray:
        sums = _draw_sums(rng, both, draws)
        ours, theirs = (
            part[:, 0] if aggregate is None else aggregate(part) for part in (sums[:, :k], sums[:, k:])
        )
        return np.divide(ours, theirs, out=np.full(len(ours), np.nan), where=theirs != 0)

    found = _resample(ratios, n, resamples)
    found = found[np.isfinite(found)]
    if not len(found):
        raise ValueError("b has a score of 0 in every resample")
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _draw_sums(rng: np.random.Generator, statistics: Values, draws: int) -> np.ndarray:
    """Sum the statistics (n, k) of n examples drawn with replacement, `draws` times: (draws, k)."""
    n = len(statistics)
    drawn = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)
    return np.asarray(counts.astype(np.float64) @ statistics)  # (draws, n) @ (n, k)


def _checked(name: str, values: Sequence[float] | np.ndarray, aggregate: Aggregate | None = None) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != (1 if aggregate is None else 2) or not array.size:
        raise ValueError(f"{name} must hold one value per example, at least one; its shape is {array.shape}")
    if not np.isfinite(array).all():
        where = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
        raise ValueError(f"{name}[{where}] is not a finite number")
    return array


def _resample(draw: Draw, n: int, resamples: int) -> Values:
    """Draw `resamples` means in chunks of about `_DRAWS_AT_ONCE` values."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    return np.concatenate([draw(k) for k in _chunks(resamples, max(1, _DRAWS_AT_ONCE // n))])


def _chunks(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)
