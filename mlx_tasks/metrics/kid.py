"""The kernel distance: an unbiased squared MMD with a cubic kernel, and its deviation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_tasks.metrics.estimate import Estimate, normal_quantile


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) values of (a.b / D + 1)^3.  a: (N, D), b: (M, D)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Kernel distance of two feature sets; around zero, also below it, where they agree.

    KID = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

    The estimate is unbiased at any count. Its deviation comes from leaving out one row at a time (delete-one
    jackknife over both sets, exact from the kernel's row sums), the interval is the normal one.

    Args:
        a: (N, D).
        b: (M, D).
        confidence: level of the interval.

    Raises: ValueError unless both are (at least 3, D) with one D.
    Source: Binkowski et al. 2018, section 3; the estimator is Gretton et al. 2012, Eq. 3. There, means over random
    blocks; here all pairs, since a few hundred rows fit at once.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 3:
        raise ValueError(f"features must be (N >= 3, D) with one D, got {a.shape} and {b.shape}")
    within_a, within_b, across = polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b)
    np.fill_diagonal(within_a, 0)
    np.fill_diagonal(within_b, 0)
    n, m = len(a), len(b)
    total_a, total_b, total = within_a.sum(), within_b.sum(), across.sum()
    value = total_a / (n * (n - 1)) + total_b / (m * (m - 1)) - 2 * total / (n * m)

    without_a = (
        (total_a - 2 * within_a.sum(axis=1)) / ((n - 1) * (n - 2))
        + total_b / (m * (m - 1))
        - 2 * (total - across.sum(axis=1)) / ((n - 1) * m)
    )
    without_b = (
        total_a / (n * (n - 1))
        + (total_b - 2 * within_b.sum(axis=1)) / ((m - 1) * (m - 2))
        - 2 * (total - across.sum(axis=0)) / (n * (m - 1))
    )
    variance = (n - 1) / n * ((without_a - without_a.mean()) ** 2).sum()
    variance += (m - 1) / m * ((without_b - without_b.mean()) ** 2).sum()
    half = normal_quantile(confidence) * float(np.sqrt(variance))
    return Estimate(float(value), float(value) - half, float(value) + half)


@dataclass(frozen=True)
class SubsetKid:
    """KID as it is published.

    Attributes:
        mean: over the subsets.
        deviation: standard deviation over the subsets, as tables give it; not the deviation of the mean.
        subsets: how many.
        size: rows of each, of both sides.
    """

    mean: float
    deviation: float
    subsets: int
    size: int


def subset_kid(a: np.ndarray, b: np.ndarray, seed: int, subsets: int = 100, size: int = 1000) -> SubsetKid:
    """The mean of `kid` over random subsets, bounded in memory by the subsets' size.

    size: cut to the smaller set where that has fewer rows; the result says which size was used.
    Raises: ValueError as `kid`, and for fewer than two subsets.
    Source: Binkowski et al. 2018, Section 4, whose tables use 100 subsets of 1000.
    """
    if subsets < 2:
        raise ValueError(f"a deviation needs at least 2 subsets, got {subsets}")
    rows = min(size, len(a), len(b))
    generator = np.random.Generator(np.random.PCG64([seed, len(a), len(b)]))
    values = [
        kid(a[generator.choice(len(a), rows, replace=False)], b[generator.choice(len(b), rows, replace=False)]).value
        for _ in range(subsets)
    ]
    return SubsetKid(float(np.mean(values)), float(np.std(values)), subsets, rows)
