"""Near-duplicate groups: images that look alike (few bits apart, shapes nearly parallel), joined by union-find."""

from __future__ import annotations

import numpy as np

from mlx_tasks.data.columns import by_first_appearance
from mlx_tasks.data.measures import Looks
from mlx_tasks.data.near import MIN_COSINE, near_pairs


def duplicate_groups(pixels: np.ndarray, looks: Looks, distance: int) -> np.ndarray:
    """The group of each image, numbered from 0 in order of first appearance; an image without a like is alone in one.

    Two images are joined where their pixels are equal, or where their looks differ in at most `distance` bits and the
    cosine of their shapes is at least 0.98. Groups are what joining leads to (a near b, b near c: all three together).
    pixels: (N,) integers, equal for equal pixels.  looks: of the same N.  Returns: (N,) int64.
    Cost: near.py's, in time; in memory some 150 bytes an image beside its look, whatever is alike.
    Raises: ValueError where the counts differ.
    """
    if len(pixels) != len(looks.known):
        raise ValueError(f"{len(pixels)} digests and {len(looks.known)} looks: give one of each an image")
    sets = DisjointSets(len(pixels))
    _, first, inverse = np.unique(pixels, return_index=True, return_inverse=True)
    sets.join(np.arange(len(pixels)), first[inverse.ravel()])
    del inverse
    rows = np.sort(first[looks.known[first]])
    for left, right in near_pairs(looks.bits, looks.shapes, rows, distance, sets.find):
        ones, others = (looks.shapes[side].astype(np.float32) for side in (left, right))
        alike = np.flatnonzero(np.einsum("nd,nd->n", ones, others) >= MIN_COSINE)
        sets.join(left[alike], right[alike])
    return by_first_appearance(sets.roots())


class DisjointSets:
    """Union-find over 0..count-1; the smaller root wins, so roots do not depend on the order of joining."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def find(self, items: np.ndarray) -> np.ndarray:
        """The root of each item, whose paths are shortened on the way.  (M,) integers."""
        roots = self._parent[items]
        while not np.array_equal(higher := self._parent[roots], roots):
            roots = higher
        self._parent[items] = roots
        return roots

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Join left[i] with right[i].  Both (M,) integers.  Pairs already in one set cost no Python."""
        ends = np.sort(np.stack([self.find(left), self.find(right)]), axis=0)
        apart = ends[:, ends[0] != ends[1]]
        count = len(self._parent)
        for pair in np.unique(apart[0] * count + apart[1]).tolist():
            low, high = sorted(self._root(end) for end in divmod(pair, count))
            self._parent[high] = low

    def roots(self) -> np.ndarray:
        """(count,) integers."""
        return self.find(np.arange(len(self._parent)))

    def _root(self, item: int) -> int:
        while (parent := int(self._parent[item])) != item:
            self._parent[item] = self._parent[parent]
            item = parent
        return item
