"""Density and coverage: precision and recall's steadier relatives."""

from __future__ import annotations

import numpy as np

from mlx_tasks.metrics.estimate import Estimate, normal_quantile, share
from mlx_tasks.metrics.neighbours import distance_blocks, radii


def density_coverage(
    generated: np.ndarray, real: np.ndarray, neighbours: int = 5, confidence: float = 0.95
) -> tuple[Estimate, Estimate]:
    """density = mean over generated of (balls it lies in) / k;  coverage = share of real balls with a generated one.

    Balls are those of the real rows, each reaching to its k-th nearest other real row, so that one stray generated row
    cannot claim a region, as it can in recall. Around 1 both where the sources agree; density may exceed 1.

    Args:
        generated: (N, D); real: (M, D); neighbours: k, 5 in the paper.

    Raises: ValueError unless there are more real rows than neighbours.
    Source: Naeem et al. 2020, Eqs. 3 and 4. Intervals: normal for the mean, Wilson's for the share, balls held fixed.
    """
    if not 1 <= neighbours < len(real) or not len(generated):
        raise ValueError(f"neighbours must be in [1, real rows - 1], got {neighbours} for {len(real)} real rows")
    reach = radii(real, neighbours)
    inside = np.empty(len(generated))
    covered = np.zeros(len(real), bool)
    for rows, distances in distance_blocks(generated, real):
        hits = distances <= reach[None, :]
        inside[rows] = hits.sum(axis=1) / neighbours
        covered |= hits.any(axis=0)
    half = normal_quantile(confidence) * float(inside.std(ddof=1) / len(inside) ** 0.5) if len(inside) > 1 else 0.0
    value = float(inside.mean())
    return Estimate(value, max(0.0, value - half), value + half), share(covered, confidence)
