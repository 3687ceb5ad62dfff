"""Bootstrap intervals, also for statistics that resampling itself shifts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlx_tasks.metrics.estimate import Estimate

Statistic = Callable[[np.ndarray, np.ndarray], float]


def centred_bootstrap(
    statistic: Statistic, a: np.ndarray, b: np.ndarray, resamples: int, confidence: float, seed: int
) -> Estimate:
    """A two-sample statistic with a percentile interval of resamples moved back to the estimate.

    A resample holds copies, so a distance between resamples is larger than one between samples: the Frechet distance of
    400 against 400 rises by about its own bias once more, and plain percentiles would lie above the estimate. So the
    resamples' mean is subtracted and the estimate put in its place: low = value + q_low(s* - mean s*), not below zero
    unless the value is. The interval speaks of the statistic at these sample counts, whose bias candidates of equal
    counts share; it does not correct that bias.

    Args:
        statistic: (rows of a, rows of b) -> number.
        a: (N, ...); resampled with replacement.
        b: (M, ...); resampled with replacement, independently of a.
        resamples: number of resamples.
        confidence: level of the interval.
        seed: of the resampling.

    Raises: ValueError for fewer than two resamples.
    Source: percentile bootstrap, Efron & Tibshirani 1993, chapter 13; the shift is their bias estimate (10.2).
    """
    value = statistic(a, b)
    generator = np.random.Generator(np.random.PCG64([seed, len(a), len(b)]))
    draws = np.array(
        [
            statistic(a[generator.integers(len(a), size=len(a))], b[generator.integers(len(b), size=len(b))])
            for _ in range(_checked(resamples))
        ]
    )
    low, high = np.quantile(draws - draws.mean(), [0.5 - confidence / 2, 0.5 + confidence / 2])
    floor = 0.0 if value >= 0 else -np.inf
    return Estimate(value, float(max(floor, value + min(low, 0.0))), float(value + max(high, 0.0)))


def bootstrap_mean(values: np.ndarray, resamples: int, confidence: float, seed: int) -> Estimate:
    """The mean of independent values (N,) with a percentile interval.  Raises: ValueError for none."""
    if len(values) == 0:
        raise ValueError("the mean of no values has no value")
    generator = np.random.Generator(np.random.PCG64([seed, len(values)]))
    rows = generator.integers(len(values), size=(_checked(resamples), len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    value = float(values.mean())
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def _checked(resamples: int) -> int:
    if resamples < 2:
        raise ValueError(f"an interval needs at least 2 resamples, got {resamples}")
    return resamples
