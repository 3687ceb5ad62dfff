"""Is one candidate better than another, or is the difference inside the noise?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray], float]
"""(generated rows, real rows) -> number."""

Word = Literal["better", "worse", "inside the noise"]


@dataclass(frozen=True)
class Difference:
    """A candidate's score less another's.

    Attributes:
        value: the difference of the two plain estimates.
        low, high: its interval.
        verdict: of the first against the second; "inside the noise" where the interval holds 0.
        count: images a side, or training seeds.
    """

    value: float
    low: float
    high: float
    verdict: Word
    count: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def difference(
    a: np.ndarray,
    b: np.ndarray,
    real: np.ndarray,
    statistic: Statistic,
    *,
    higher_is_better: bool = False,
    paired: bool = True,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """statistic(a, real) - statistic(b, real), with an interval from resampling the images.

    Both candidates' resamples hold the same rows where they were drawn from the same noises (`paired`), and the same
    rows of the real set always: what the two share cancels, and so does the bias that resampling adds to each. The
    percentiles are taken of the resampled differences, moved to the plain one.

    Args:
        a, b: (N, D) features, row i of both from the same noise and label if `paired`.
        real: (M, D).

    Raises: ValueError for unequal counts if paired, or fewer than two resamples.
    Source: Efron & Tibshirani 1993, chapter 13; tests/test_metrics_significance.py measures how often it cries wolf.
    """
    if paired and len(a) != len(b):
        raise ValueError(f"paired candidates need equal counts, got {len(a)} and {len(b)}: draw from the same noises")
    if resamples < 2:
        raise ValueError(f"an interval needs at least 2 resamples, got {resamples}")
    value = statistic(a, real) - statistic(b, real)
    generator = np.random.Generator(np.random.PCG64([seed, len(a), len(b), len(real)]))
    draws = np.empty(resamples)
    for i in range(resamples):
        rows = generator.integers(len(a), size=len(a))
        others = rows if paired else generator.integers(len(b), size=len(b))
        shown = real[generator.integers(len(real), size=len(real))]
        draws[i] = statistic(a[rows], shown) - statistic(b[others], shown)
    low, high = np.quantile(draws - draws.mean(), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return _judged(value, value + float(low), value + float(high), higher_is_better, len(a))


def difference_over_seeds(
    a: Sequence[float], b: Sequence[float], *, higher_is_better: bool = False, confidence: float = 0.95
) -> Difference:
    """Mean of a - b over training seeds, seed by seed, with Student's interval.

    Raises: ValueError for unequal numbers of seeds, or fewer than two.
    """
    from scipy.stats import t

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"both need one value for each of at least 2 seeds, got {len(a)} and {len(b)}")
    gaps = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    half = float(t.ppf(0.5 + confidence / 2, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5)
    value = float(gaps.mean())
    return _judged(value, value - half, value + half, higher_is_better, len(gaps))


def difference_of_intervals(
    a: tuple[float, float, float], b: tuple[float, float, float], *, higher_is_better: bool = False
) -> Difference:
    """The cautious rule where only (value, low, high) of each is known, as from an old run's records.

    The two errors are taken as independent and as long as the longer arm of each interval; their squares add up.
    Pairing would make the interval shorter, so a difference called real here is real.
    """
    value = a[0] - b[0]
    half = float(np.hypot(max(a[0] - a[1], a[2] - a[0]), max(b[0] - b[1], b[2] - b[0])))
    return _judged(value, value - half, value + half, higher_is_better, 0)


def at_equal_counts(seed: int, *sets: np.ndarray) -> list[np.ndarray]:
    """Each set cut to the smallest one's count, by a seeded choice without replacement, in its own order."""
    count = min(len(rows) for rows in sets)
    generator = np.random.Generator(np.random.PCG64([seed, count]))
    return [rows[np.sort(generator.permutation(len(rows))[:count])] for rows in sets]


def _judged(value: float, low: float, high: float, higher_is_better: bool, count: int) -> Difference:
    if low <= 0.0 <= high:
        return Difference(float(value), low, high, "inside the noise", count)
    better = (value > 0) == higher_is_better
    return Difference(float(value), low, high, "better" if better else "worse", count)
