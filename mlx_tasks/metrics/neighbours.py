"""Nearest neighbours in blocks: memory is bounded for any number of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 1024
"""Rows of one block of distances."""


def distance_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows of a, their Euclidean distances to all of b (block, M)), by differences: dot products lose near copies."""
    from scipy.spatial.distance import cdist

    for start in range(0, len(a), BLOCK):
        rows = slice(start, min(start + BLOCK, len(a)))
        yield rows, cdist(a[rows], b)


def radii(x: np.ndarray, neighbours: int) -> np.ndarray:
    """(N,) distance of each row of (N, D) to its k-th nearest other row."""
    found = np.empty(len(x))
    for rows, distances in distance_blocks(x, x):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        found[rows] = np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1]
    return found


def nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distances (N,), indices (N,)): the nearest row of b for each row of a."""
    distance, index = np.empty(len(a)), np.empty(len(a), np.int64)
    for rows, distances in distance_blocks(a, b):
        index[rows] = distances.argmin(axis=1)
        distance[rows] = distances[np.arange(len(distances)), index[rows]]
    return distance, index
