"""Near-duplicate groups: images that look alike (few bits apart, shapes nearly parallel), joined by union-find."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlx_tasks.data.measures import Look

MIN_COSINE = 0.98
_WORDS = 4
_BLOCK = 1 << 20


def duplicate_groups(pixel_digests: list[str], looks: list[Look | None], distance: int) -> np.ndarray:
    """The group of each image, numbered from 0 in order of first appearance; an image without a like is alone in one.

    Two images are joined where their pixels are equal, or where their looks differ in at most `distance` bits and the
    cosine of their shapes is at least 0.98. Groups are what joining leads to (a near b, b near c: all three together).
    pixel_digests, looks: N of each.  Returns: (N,) int64.
    Cost: pigeonhole. Of distance + 1 stretches of the bits, a near pair agrees in at least one entirely, so only
    images that share a stretch are compared: near N for small distances, and never a Python loop over pairs.
    Raises: ValueError where the counts differ.
    """
    if len(pixel_digests) != len(looks):
        raise ValueError(f"{len(pixel_digests)} digests and {len(looks)} looks: give one of each an image")
    sets = _DisjointSets(len(looks))
    _, first, inverse = np.unique(np.array(pixel_digests, dtype=str), return_index=True, return_inverse=True)
    sets.join(np.arange(len(looks)), first[inverse.ravel()])
    compared = np.array(sorted(i for i in first.tolist() if looks[i] is not None), np.int64)
    if len(compared):
        chosen = [value for i in compared if (value := looks[i]) is not None]
        words = np.frombuffer(b"".join(one.bits for one in chosen), np.uint64).reshape(-1, _WORDS)
        shapes = np.stack([one.shape for one in chosen])
        for left, right in near_pairs(words, distance):
            cosine = np.einsum("nd,nd->n", shapes[left].astype(np.float32), shapes[right].astype(np.float32))
            alike = np.flatnonzero(cosine >= MIN_COSINE)
            sets.join(compared[left[alike]], compared[right[alike]])
    roots = sets.roots()
    _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.ravel()]


def near_pairs(words: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs (left, right) of hashes at most `distance` bits apart, in blocks; a pair may come twice.

    words: (N, 4) uint64.
    """
    if len(words) < 2:
        return
    bits = np.unpackbits(words.view(np.uint8).reshape(len(words), -1), axis=1)
    # A bit that all share tells nothing apart; the others are dealt out so that each stretch gets its share of the
    # telling ones, or images alike in one region of the hash would all meet in one bucket.
    telling = np.argsort(np.abs(bits.mean(axis=0) - 0.5), kind="stable")
    telling = telling[(bits.min(axis=0) != bits.max(axis=0))[telling]]
    for stretch in range(distance + 1):
        dealt = telling[stretch :: distance + 1]
        keys = np.packbits(bits[:, dealt], axis=1) if len(dealt) else np.zeros((len(bits), 1), np.uint8)
        yield from _near_in_buckets(words, keys, distance)


def _near_in_buckets(words: np.ndarray, keys: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Near pairs among rows with equal keys.

    Rows are sorted by key; a pass compares every row with the one `offset` places on, as slices. Rows whose bucket is
    too short for the offset are dropped once they are half of all.  words: (N, 4) uint64; keys: (N, K) uint8.
    """
    rows = np.lexsort(keys.T[::-1])
    ordered = keys[rows]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    bucket = np.cumsum(new) - 1
    offset = 1
    lengths = np.bincount(bucket)[bucket]
    while True:
        alive = lengths > offset
        if not alive.any():
            return
        if 2 * alive.sum() <= len(rows) or offset == 1:
            rows, bucket, lengths = rows[alive], bucket[alive], lengths[alive]
            columns = np.ascontiguousarray(words[rows].T)
        for begin in range(0, len(rows) - offset, _BLOCK):
            end = min(begin + _BLOCK, len(rows) - offset)
            left, right = slice(begin, end), slice(begin + offset, end + offset)
            apart = np.zeros(end - begin, np.uint16)
            for column in columns:
                apart += np.bitwise_count(column[left] ^ column[right])
            near = np.flatnonzero((apart <= distance) & (bucket[left] == bucket[right])) + begin
            if len(near):
                yield rows[near], rows[near + offset]
        offset += 1


class _DisjointSets:
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
        ends = np.stack([self.find(left), self.find(right)])
        for a, b in np.unique(ends[:, ends[0] != ends[1]], axis=1).T.tolist():
            low, high = sorted((self._root(a), self._root(b)))
            self._parent[high] = low

    def roots(self) -> np.ndarray:
        """(count,) integers."""
        return self.find(np.arange(len(self._parent)))

    def _root(self, item: int) -> int:
        while (parent := int(self._parent[item])) != item:
            self._parent[item] = self._parent[parent]
            item = parent
        return item
