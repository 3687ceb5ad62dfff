"""Precision and recall: how much of what is drawn looks real, and how much of what is real is drawn."""

from __future__ import annotations

import numpy as np

from mlx_tasks.metrics.estimate import Estimate, share
from mlx_tasks.metrics.neighbours import distance_blocks, radii


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
    real_reach, generated_reach = radii(real, neighbours), radii(generated, neighbours)
    precise, recalled = np.zeros(len(generated), bool), np.zeros(len(real), bool)
    for rows, distances in distance_blocks(generated, real):
        precise[rows] = (distances <= real_reach[None, :]).any(axis=1)
        recalled |= (distances <= generated_reach[rows][:, None]).any(axis=0)
    return share(precise, confidence), share(recalled, confidence)
