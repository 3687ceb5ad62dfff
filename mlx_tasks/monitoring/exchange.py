"""Statistics of two sets with null distributions made by exchanging rows, so that each test has the level it states.

Rows of one distribution are exchangeable: whatever is computed of "these rows against those" is then distributed as it
is over all ways of dealing the pooled rows out, and the share of dealings with a value as large as the observed one is
an exact p value, at any count, for any statistic. With classes, rows are exchanged within their class only, and sets
whose class mixes differ compare fairly. Source: Gretton et al. 2012, section 8; the +1 is Phipson & Smyth 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_tasks.metrics.neighbours import radii

BLOCK = 256
"""Deals whose covariances are held at once."""

NEIGHBOURS = 3
"""Behind the balls of precision and coverage, as Kynkaanniemi et al. 2019 take them."""


@dataclass(frozen=True)
class Deal:
    """Ways of dealing pooled rows out to two sets.

    Attributes:
        members: (P + 1, N + M) 1 where a row counts as the first set's; row 0 is how it was.
        n, m: rows of the sets.
    """

    members: np.ndarray
    n: int
    m: int

    def p_value(self, values: np.ndarray) -> float:
        """Chance of a statistic as large as values[0]; (P + 1,) values."""
        # A deal that only swaps equal rows must count as equal, whatever the order of its additions.
        close = 1e-9 * max(1e-3, abs(values[0]))
        return float((1 + np.count_nonzero(values[1:] >= values[0] - close)) / len(values))


def deal(n: int, m: int, permutations: int, seed: int, strata: tuple[np.ndarray, np.ndarray] | None = None) -> Deal:
    """`permutations` random ways beside the one that is.  strata: classes of the first rows (N,), the second's (M,)."""
    classes = np.zeros(n + m, int) if strata is None else np.concatenate(strata)
    generator = np.random.Generator(np.random.PCG64([seed, n, m]))
    members = np.zeros((permutations + 1, n + m))
    members[0, :n] = 1.0
    for kind in np.unique(classes):
        places = np.flatnonzero(classes == kind)
        mine = np.broadcast_to(members[0, places], (permutations, len(places)))
        members[1:, places] = generator.permuted(mine, axis=1)
    return Deal(members, n, m)


def mmd2(dealt: Deal, kernel: np.ndarray) -> np.ndarray:
    """(P + 1,) unbiased squared MMD; kernel (N + M, N + M), its diagonal is not looked at.

    mmd2 = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)    (Gretton et al., Eq. 3)
    """
    kernel = kernel.copy()
    np.fill_diagonal(kernel, 0.0)
    n, m = dealt.n, dealt.m
    rows = dealt.members @ kernel
    within_a = (rows * dealt.members).sum(axis=1)
    across = (rows * (1 - dealt.members)).sum(axis=1)
    within_b = kernel.sum() - within_a - 2 * across
    return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * across / (n * m)


def gaussian_kernel(rows: np.ndarray) -> np.ndarray:
    """exp(-d^2 / (2 h^2)) of (N, D), where 2 h^2 is the median squared distance; ones where all rows are equal."""
    rows = rows - rows.mean(axis=0)
    lengths = (rows**2).sum(axis=1)
    squared = np.maximum(lengths[:, None] + lengths[None, :] - 2 * rows @ rows.T, 0.0)
    typical = np.median(squared[np.triu_indices(len(rows), 1)])
    return np.exp(-squared / typical) if typical > 0 else np.ones_like(squared)


def of_one_class(kernel: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The kernel between rows of one class, zero across: it sees a class that is drawn as another."""
    return kernel * (classes[:, None] == classes[None, :])


def frechet_rise(dealt: Deal, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(P + 1,) how much further from the real rows (R, D) the first set is than the second, as Frechet distances."""
    width = rows.shape[1]
    mean, centred = real.mean(axis=0), real - real.mean(axis=0)
    covariance = centred.T @ centred / (len(real) - 1)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    trace = float(np.trace(covariance))
    shifted = rows - mean
    products = (shifted[:, :, None] * shifted[:, None, :]).reshape(len(rows), -1)

    def distance(members: np.ndarray, count: int) -> np.ndarray:
        return np.concatenate([block(members[i : i + BLOCK], count) for i in range(0, len(members), BLOCK)])

    def block(members: np.ndarray, count: int) -> np.ndarray:
        means = members @ shifted / count
        second = (members @ products).reshape(-1, width, width) / count
        spread = (second - means[:, :, None] * means[:, None, :]) * (count / (count - 1))
        overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root @ spread @ root), 0, None)).sum(axis=1)
        return (means**2).sum(axis=1) + np.trace(spread, axis1=1, axis2=2) + trace - 2 * overlap

    return distance(dealt.members, dealt.n) - distance(1 - dealt.members, dealt.m)


def fidelity_loss(dealt: Deal, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(P + 1,) precision of the second set minus that of the first: shares of rows inside the real ones' balls."""
    inside = (_distances(rows, real) <= radii(real, NEIGHBOURS)[None, :]).any(axis=1).astype(float)
    mine = dealt.members @ inside
    return (inside.sum() - mine) / dealt.m - mine / dealt.n


def coverage_loss(dealt: Deal, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(P + 1,) coverage by the second set minus that by the first: shares of real balls that hold a row.

    Coverage (Naeem et al. 2020, Eq. 4) stands for recall: its balls are the real rows', so exchanging rows moves none.
    """
    within = (_distances(rows, real) <= radii(real, NEIGHBOURS)[None, :]).astype(float)
    mine = dealt.members @ within
    other = within.sum(axis=0)[None, :] - mine
    return (other > 0.5).mean(axis=1) - (mine > 0.5).mean(axis=1)


def kolmogorov_smirnov(dealt: Deal, values: np.ndarray) -> np.ndarray:
    """(P + 1,) largest distances between the sets' distribution functions of a number (N + M,)."""
    order = np.argsort(values, kind="stable")
    last = np.append(np.diff(values[order]) > 0, True)  # of a run of ties only the last place counts
    mine = np.cumsum(dealt.members[:, order], axis=1)[:, last]
    both = np.flatnonzero(last)[None, :] + 1.0
    return np.abs(mine / dealt.n - (both - mine) / dealt.m).max(axis=1)


def stability_index(now: np.ndarray, then: np.ndarray, bins: int = 10) -> float:
    """PSI of a number's values now (N,) against then (M,), in bins that hold equal shares of `then`.

    sum over bins of (p - q) ln(p / q), shares smoothed by half a count. Under 0.1 is usually called stable, over 0.25
    changed, at counts of thousands: at a hundred, no change at all gives 0.2.
    """
    edges = np.unique(np.quantile(then, np.linspace(0, 1, bins + 1)[1:-1]))
    counted = [np.bincount(np.searchsorted(edges, x, side="left"), minlength=len(edges) + 1) + 0.5 for x in (now, then)]
    p, q = (counts / counts.sum() for counts in counted)
    return float(((p - q) * np.log(p / q)).sum())


def holm(p_values: dict[str, float], level: float) -> set[str]:
    """The tests that reject, so that the chance of any false one is at most `level`.  Source: Holm 1979."""
    rejected: set[str] = set()
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(ordered):
        if p_values[name] > level / (len(ordered) - place):
            break
        rejected.add(name)
    return rejected


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(a, b)
