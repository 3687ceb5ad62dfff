"""Which points of a set nobody beats: the Pareto front, all objectives to be made small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(values: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates, rising.

    a dominates b when a_m <= b_m for every objective m and a_m < b_m for at least one, so equal points stay together.
    values: (N, M), finite, each objective to be made small.

    In lexicographic order a point can only be dominated by an earlier one, and then also by an earlier one of the
    front, so one sweep against the front found so far is enough: O(N log N + N * front).
    Raises: ValueError where the values are not (N, M) or not finite.
    """
    points = np.asarray(values, dtype=np.float64)
    if points.size == 0:
        return []
    if points.ndim != 2:
        raise ValueError(f"values must be (points, objectives), got shape {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"objectives must be finite, got {points[~np.isfinite(points).all(axis=1)][0].tolist()}")
    front: list[int] = []
    for index in np.lexsort(points.T[::-1]):
        point = points[index]
        rivals = points[front]
        if not np.any(np.all(rivals <= point, axis=1) & np.any(rivals < point, axis=1)):
            front.append(int(index))
    return sorted(front)


def choose(values: Sequence[Sequence[float]], max_quality_loss: float) -> int:
    """Index of the fastest point of the front whose error is within `max_quality_loss` of the best error.

    values: (N, M) with the error first and the latency second; the limit is best * (1 + max_quality_loss). Ties in
    latency go to the smaller error, then to the earlier point.
    Raises: ValueError for no points, or as `pareto_front`.
    """
    front = pareto_front(values)
    if not front:
        raise ValueError("there is no point to choose from")
    limit = min(values[i][0] for i in front) * (1.0 + max_quality_loss)
    return min((i for i in front if values[i][0] <= limit), key=lambda i: (values[i][1], values[i][0], i))
