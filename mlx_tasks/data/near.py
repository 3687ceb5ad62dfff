"""Pairs of looks that may be copies, among a million, without comparing all with all.

Two ways, which share the work. Images with detail have telling bits: of distance + 1 stretches of the bits, a near pair
agrees in at least one entirely (the pigeonhole), so only rows that share a stretch are compared. Images without have
few bits that tell, and crowd one stretch in thousands: there the shapes tell, which are nearly parallel in a pair. So
rows that were in a crowd in any stretch are compared once more by cutting space: of the pairs that a cut parts, only
those remain whose ends are both within reach of it (Bentley 1975: fixed-radius near neighbours). A pair with one end in
no crowd shares a stretch outside crowds and was found the first way; a pair with both ends in crowds, the second.

scipy's k-d tree has no way to pass over pairs that are in one set already: of n images that are all alike it lists
n^2/2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

MIN_COSINE = 0.98
CROWD = 96
"""Rows that share a stretch and are no longer compared for it, but by their shapes."""

_BLOCK = 1 << 16
_TILE = 1024
_AXES = 10
_SAMPLE = 4096
_SLACK = 1e-3
"""Rounding to float16 changes the squared length of a shape, and a cosine, by less."""

_REACH = math.sqrt(2 * (1 + _SLACK - MIN_COSINE)) + 1e-4
"""How far apart shapes of that cosine can be."""

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]
Find = Callable[[np.ndarray], np.ndarray]


def near_pairs(bits: np.ndarray, shapes: np.ndarray, rows: np.ndarray, distance: int, find: Find) -> Pairs:
    """Pairs (left, right) of `rows` that are at most `distance` bits apart, in blocks of 65,536 at most.

    Every such pair whose shapes' cosine is at least 0.98 comes, once or more often, unless `find` says that its ends
    are in one set already; pairs of a smaller cosine may come.
    bits: (N, 32) uint8; shapes: (N, 63) float16; rows: (M,) places in them; find: the sets of rows by what was found.
    """
    if len(rows) < 2:
        return
    crowded = np.zeros(len(rows), bool)
    telling = _telling_bits(bits, rows)
    words = bits[rows].view(np.uint64)
    for stretch in range(distance + 1):
        keys = _keys(bits, rows, telling[stretch :: distance + 1])
        for left, right in _near_in_buckets(words, keys, distance, crowded):
            yield rows[left], rows[right]
    del words
    crowd = rows[crowded]
    if len(crowd):
        yield from _near_in_crowd(bits, shapes, crowd, distance, find)


def _telling_bits(bits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The bits that are not the same in all rows, those that are set in half of them first.

    A bit that all share tells nothing apart; the others are dealt out in this order, so that each stretch gets its
    share of the telling ones, or images alike in one region of the hash would all meet in one bucket.
    """
    often = np.zeros(8 * bits.shape[1], np.int64)
    for begin in range(0, len(rows), _BLOCK):
        often += np.unpackbits(bits[rows[begin : begin + _BLOCK]], axis=1).sum(axis=0, dtype=np.int64)
    order = np.argsort(np.abs(often / len(rows) - 0.5), kind="stable")
    return order[((often > 0) & (often < len(rows)))[order]]


def _keys(bits: np.ndarray, rows: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """(M, K) uint64: the dealt bits of each row, up to 64 in a column."""
    keys = np.zeros((len(rows), max(1, -(-len(dealt) // 64))), np.uint64)
    for place, bit in enumerate(dealt.tolist()):
        column = keys[:, place // 64]
        column <<= np.uint64(1)
        column |= ((bits[rows, bit // 8] >> (7 - bit % 8)) & 1).astype(np.uint64)
    return keys


def _near_in_buckets(words: np.ndarray, keys: np.ndarray, distance: int, crowded: np.ndarray) -> Pairs:
    """Near pairs among rows with equal keys, and a mark in `crowded` where there are too many of a key.

    Rows are sorted by key; a pass compares every row with the one `offset` places on, as slices. Rows whose bucket is
    too short for the offset are dropped once they are half of all.  words: (M, 4) uint64; keys: (M, K) uint64.
    """
    rows = np.lexsort(keys.T[::-1])
    ordered = keys[rows]
    bucket = np.zeros(len(rows), np.int64)
    np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1), out=bucket[1:])
    del ordered
    lengths = np.bincount(bucket)[bucket]
    crowded[rows[lengths > CROWD]] = True
    kept = (lengths > 1) & (lengths <= CROWD)
    rows, bucket, lengths = rows[kept], bucket[kept], lengths[kept]
    columns = words[rows].T
    offset = 1
    while len(rows):
        alive = lengths > offset
        if 2 * np.count_nonzero(alive) <= len(rows):
            rows, bucket, lengths = rows[alive], bucket[alive], lengths[alive]
            columns = words[rows].T
        for begin in range(0, len(rows) - offset, _BLOCK):
            end = min(begin + _BLOCK, len(rows) - offset)
            left, right = slice(begin, end), slice(begin + offset, end + offset)
            apart = sum(np.bitwise_count(column[left] ^ column[right]).astype(np.uint16) for column in columns)
            near = np.flatnonzero((apart <= distance) & (bucket[left] == bucket[right])) + begin
            if len(near):
                yield rows[near], rows[near + offset]
        offset += 1


def _near_in_crowd(bits: np.ndarray, shapes: np.ndarray, crowd: np.ndarray, distance: int, find: Find) -> Pairs:
    """Near pairs of the crowd, by cutting space until few are left on both sides, and comparing those.

    What is left to do is a pile of pairs of row sets (or of one set with itself), so memory is a few times the crowd's.
    A pair of sets that are all in one group already is left out: a thousand images alike cost a few comparisons each.
    """
    where = _places(bits, shapes, crowd, distance)
    pile: list[tuple[np.ndarray, np.ndarray | None]] = [(np.arange(len(crowd)), None)]
    while pile:
        ones, others = pile.pop()
        if others is not None:
            ones, others = _within_reach(where, ones, others)
            if not len(ones) or not len(others):
                continue
        both = ones if others is None else np.concatenate([ones, others])
        groups = find(crowd[both])
        if (groups == groups[0]).all():
            continue
        if len(ones) * (len(ones) if others is None else len(others)) <= _TILE * _TILE:
            rest = None if others is None else crowd[others]
            yield from _near_in_tile(bits, shapes, crowd[ones], rest, distance, find)
        else:
            pile += _cut(where, ones, others)


def _places(bits: np.ndarray, shapes: np.ndarray, crowd: np.ndarray, distance: int) -> np.ndarray:
    """(M, _AXES + 1) float32: coordinates that differ by at most 1 in a near pair.

    The shapes' principal coordinates, as an orthonormal basis brings nothing further apart; and how many bits are set.
    """
    count, sides = len(crowd), shapes.shape[1]
    sample = shapes[crowd[:: max(1, count // (4 * _SAMPLE))]].astype(np.float64)
    _, basis = np.linalg.eigh(np.cov(sample.T) if len(sample) > 1 else np.eye(sides))
    basis = np.ascontiguousarray(basis[:, ::-1][:, :_AXES], np.float32)
    places = np.empty((count, _AXES + 1), np.float32)
    for begin in range(0, count, _BLOCK):
        rows = crowd[begin : begin + _BLOCK]
        block = places[begin : begin + len(rows)]
        block[:, :_AXES] = shapes[rows].astype(np.float32) @ basis / _REACH
        block[:, _AXES] = np.bitwise_count(bits[rows]).sum(axis=1) / (distance + 0.5)
    return places


def _within_reach(where: np.ndarray, ones: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each side's rows that are within reach of the box around the other."""
    for _ in range(2):
        if not len(ones):
            break
        box = where[ones]
        low, high = box.min(axis=0) - 1, box.max(axis=0) + 1
        there = where[others]
        others, ones = ones, others[((there >= low) & (there <= high)).all(axis=1)]
    return ones, others


def _cut(where: np.ndarray, ones: np.ndarray, others: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The same pairs in smaller sets, less those that the cut puts out of reach; sets with themselves come last."""
    both = ones if others is None else np.concatenate([ones, others])
    sample = where[both[:: max(1, len(both) // _SAMPLE)]]
    axis = int(sample.var(axis=0).argmax())
    middle = float(np.median(sample[:, axis]))
    parts = [_sides(where[:, axis], side, middle) for side in (ones, ones if others is None else others)]
    (low, high, low_edge, high_edge), (low_other, high_other, low_other_edge, high_other_edge) = parts
    if not (len(low) and len(high)) and not (len(low_other) and len(high_other)):
        return _halved(ones, others)  # neither was cut, and would come back as it is
    if others is None:
        return [(low_edge, high_edge), (low, None), (high, None)]
    return [(low_edge, high_other_edge), (high_edge, low_other_edge), (low, low_other), (high, high_other)]


def _halved(ones: np.ndarray, others: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray | None]]:
    if others is None:
        low, high = np.array_split(ones, 2)
        return [(low, high), (low, None), (high, None)]
    long, short = (ones, others) if len(ones) > len(others) else (others, ones)
    return [(half, short) for half in np.array_split(long, 2)]


def _sides(values: np.ndarray, rows: np.ndarray, middle: float) -> tuple[np.ndarray, ...]:
    """Rows below the middle and not below; and of each those within reach of the middle."""
    at = values[rows]
    below = at < middle
    return rows[below], rows[~below], rows[below & (at >= middle - 1)], rows[~below & (at <= middle + 1)]


def _near_in_tile(
    bits: np.ndarray, shapes: np.ndarray, ones: np.ndarray, others: np.ndarray | None, distance: int, find: Find
) -> Pairs:
    """Near pairs of one set with another, or among itself, all compared, but for those in one group already."""
    left_shapes = shapes[ones].astype(np.float32)
    right = ones if others is None else others
    cosines = left_shapes @ (left_shapes if others is None else shapes[right].astype(np.float32)).T
    alike = cosines >= MIN_COSINE - _SLACK
    if others is None:
        alike &= np.tri(len(ones), k=-1, dtype=bool)
    all_i, all_j = np.nonzero(alike)
    here, there = bits[ones].view(np.uint64), bits[right].view(np.uint64)
    for begin in range(0, len(all_i), _BLOCK):
        i, j = all_i[begin : begin + _BLOCK], all_j[begin : begin + _BLOCK]
        news = find(ones)[i] != find(right)[j]
        i, j = i[news], j[news]
        apart = sum(np.bitwise_count(here[i, word] ^ there[j, word]).astype(np.uint16) for word in range(here.shape[1]))
        near = np.flatnonzero(apart <= distance)
        if len(near):
            yield ones[i[near]], right[j[near]]
