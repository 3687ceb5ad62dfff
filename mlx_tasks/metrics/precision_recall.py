"""Precision and recall: how much of what is drawn looks real, and how much of what is real is drawn."""

from __future__ import annotations

import numpy as np

from mlx_tasks.metrics.estimate import Estimate, share


def precision_recall(
    generated: np.ndarray, real: np.ndarray, neighbours: int = 3, confidence: float = 0.95
) -> tuple[Estimate, Estimate]:
    """Precision (share of generated rows inside the real manifold) and recall (the other way round).

    A set's manifold is the union of balls around its rows, each reaching to the row's k-th nearest neighbour in its own
    set. Both depend on the counts, so compare equal ones. The intervals are Wilson's, the manifolds held fixed:
    resampling them would fill them with copies whose balls have no radius.

    Args:
        generated: (N, D).
        real: (M, D).
        neighbours: k.
        confidence: level of the intervals.

    Raises: ValueError unless each set has more than `neighbours` rows.
    Source: Kynkaanniemi et al. 2019, Eqs. 1 and 2 (k = 3).
    """
    if not 1 <= neighbours < min(len(generated), len(real)):
        raise ValueError(f"neighbours must be in [1, rows - 1], got {neighbours} for {len(generated)} and {len(real)}")
    across = _distances(generated, real)
    precise = np.asarray(across <= _radii(real, neighbours)[None, :])
    recalled = np.asarray(across <= _radii(generated, neighbours)[:, None])
    return share(np.any(precise, axis=1), confidence), share(np.any(recalled, axis=0), confidence)


def _radii(x: np.ndarray, neighbours: int) -> np.ndarray:
    """(N,) distance of each row to its k-th nearest other row."""
    distances = _distances(x, x)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) Euclidean distances, by differences: the shortcut through dot products loses near copies."""
    from scipy.spatial.distance import cdist

    return cdist(a, b)
