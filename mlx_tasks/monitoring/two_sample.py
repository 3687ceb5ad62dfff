"""Do two sets of features come from one distribution? A permutation test with the level it states."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TwoSampleResult(NamedTuple):
    """The test's outcome.

    Attributes:
        mmd2: unbiased squared MMD; around zero where the sets agree.
        p_value: chance of an mmd2 as large if both came from one distribution; at least 1 / (permutations + 1).
    """

    mmd2: float
    p_value: float


def permutation_test(
    a: np.ndarray, b: np.ndarray, permutations: int, seed: int, strata: tuple[np.ndarray, np.ndarray] | None = None
) -> TwoSampleResult:
    """Compare a (N, D) with b (M, D) by a kernel distance, its null distribution made by exchanging rows.

    mmd2 = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j),  k = exp(-d^2 / (2 h^2))
    h^2 = half the median squared distance of the pooled rows
    p = (1 + #{permuted mmd2 >= mmd2}) / (1 + permutations)

    Rows of one distribution are exchangeable, and h looks at the pooled rows only, so P(p <= level) <= level exactly,
    at any count and for any kernel; a bootstrap of the statistic has no such guarantee. With `strata` rows are
    exchanged within their class only, and the test is exact for sets whose class mixes differ.

    Args:
        permutations: exchanges drawn; 199 make 0.005 the smallest p.
        seed: of the exchanges.
        strata: classes of a's rows (N,) and of b's rows (M,).

    Raises: ValueError unless both are finite (at least 2, D) with one D and permutations >= 19.
    Source: Gretton et al. 2012, Eq. 3 and section 8 (median heuristic); the +1 is Phipson & Smyth 2010.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be (N >= 2, D) with one D, got {a.shape} and {b.shape}")
    if permutations < 19:
        raise ValueError(f"at least 19 permutations are needed for a level of 0.05, got {permutations}")
    pooled = np.concatenate([a, b]).astype(np.float64)
    if not np.isfinite(pooled).all():
        raise ValueError("features hold a NaN or an infinity: look at the images they come from")
    n, m = len(a), len(b)
    kernel = _gaussian_kernel(pooled)
    np.fill_diagonal(kernel, 0.0)
    classes = np.zeros(n + m, int) if strata is None else np.concatenate(strata)
    generator = np.random.Generator(np.random.PCG64([seed, n, m]))
    members = np.zeros((permutations + 1, n + m))
    members[0, :n] = 1.0
    for kind in np.unique(classes):
        places = np.flatnonzero(classes == kind)
        mine = np.broadcast_to(members[0, places], (permutations, len(places)))
        members[1:, places] = generator.permuted(mine, axis=1)
    values = _mmd2(kernel, members, n, m)
    # A permutation that only swaps equal rows must count as equal, whatever the order of its additions.
    as_large = np.count_nonzero(values[1:] >= values[0] - 1e-12 * max(1.0, abs(values[0])))
    return TwoSampleResult(float(values[0]), (1 + as_large) / (1 + permutations))


def _mmd2(kernel: np.ndarray, members: np.ndarray, n: int, m: int) -> np.ndarray:
    """(P,) statistics; members: (P, n + m), 1 where a row counts as a's."""
    rows = members @ kernel
    within_a = (rows * members).sum(axis=1)
    across = (rows * (1 - members)).sum(axis=1)
    within_b = kernel.sum() - within_a - 2 * across
    return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * across / (n * m)


def _gaussian_kernel(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=0)
    lengths = (rows**2).sum(axis=1)
    squared = np.maximum(lengths[:, None] + lengths[None, :] - 2 * rows @ rows.T, 0.0)
    typical = np.median(squared[np.triu_indices(len(rows), 1)])
    return np.exp(-squared / typical) if typical > 0 else np.ones_like(squared)
