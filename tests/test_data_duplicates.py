"""Near-duplicate groups equal the connected components that scipy finds from all pairs."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from mlx_tasks.data import duplicates
from mlx_tasks.data.measures import Look, Looks

SAME = np.eye(63)[0]


def duplicate_groups(pixels: list[str], looks: list[Look | None], distance: int) -> np.ndarray:
    """The groups of images of these pixels, by name, and looks."""
    columns = Looks.empty(len(looks))
    for row, look in enumerate(looks):
        columns.put(row, look)
    _, numbers = np.unique(np.array(pixels), return_inverse=True)
    return duplicates.duplicate_groups(numbers, columns, distance)


def planted(rng: np.random.Generator, count: int, flips: int) -> np.ndarray:
    """(count, 32) uint8 hashes, half of which are others with up to `flips` bits turned."""
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    for i, parent in enumerate(rng.integers(0, count, count // 2)):
        hashes[i] = hashes[parent]
        for bit in rng.integers(0, 256, rng.integers(0, flips + 1)):
            hashes[i, bit // 8] ^= 1 << (bit % 8)
    return hashes


def groups(hashes: np.ndarray, distance: int) -> np.ndarray:
    return duplicate_groups([str(i) for i in range(len(hashes))], [looking(row) for row in hashes], distance)


def looking(bits: np.ndarray | bytes, shape: np.ndarray = SAME) -> Look:
    return Look(bytes(bits), shape.astype(np.float16))


def components(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Every pair compared; the labels of the graph's connected components."""
    bits = np.unpackbits(hashes, axis=1).astype(np.int32)
    apart = bits.sum(1)[:, None] + bits.sum(1)[None, :] - 2 * bits @ bits.T
    return connected_components(apart <= distance, directed=False)[1]


@pytest.mark.parametrize("distance", [0, 1, 3, 8, 12, 20, 32])
@pytest.mark.parametrize("seed", [0, 1])
def test_groups_are_the_components_of_all_pairs(distance, seed):
    hashes = planted(np.random.default_rng([seed, distance]), 600, 2 * distance + 2)
    found, expected = groups(hashes, distance), components(hashes, distance)
    assert len(np.unique(found)) == len(np.unique(expected)) == len(np.unique(np.stack([found, expected]), axis=1).T)


def test_groups_hold_where_hashes_share_most_bits():
    hashes = planted(np.random.default_rng(5), 600, 8)
    hashes[:, 3:] = 0
    found, expected = groups(hashes, 2), components(hashes, 2)
    assert len(np.unique(found)) == len(np.unique(expected)) == len(np.unique(np.stack([found, expected]), axis=1).T)


def test_groups_are_numbered_by_first_appearance():
    hash_of = {letter: np.random.default_rng(ord(letter)).bytes(32) for letter in "abc"}
    found = duplicate_groups(list("uvwxyz"), [looking(hash_of[letter]) for letter in "babcac"], 4)
    assert found.tolist() == [0, 1, 0, 2, 1, 2]


def test_equal_pixels_are_one_group_also_without_a_hash():
    assert duplicate_groups(["same", "other", "same"], [None, None, None], 12).tolist() == [0, 1, 0]


def test_a_chain_is_one_group():
    """a to b and b to c are 4 bits each, a to c is 8: all three together at distance 4."""
    a = np.zeros(32, np.uint8)
    b, c = a.copy(), a.copy()
    b[0], c[0] = 0x0F, 0xFF
    assert groups(np.stack([a, b, c]), 4).tolist() == [0, 0, 0]
    assert groups(np.stack([a, b, c]), 3).tolist() == [0, 1, 2]


def test_equal_bits_of_different_shapes_are_two_groups():
    """A cosine of 0.97 is too little, 0.99 is enough."""
    bits = bytes(31) + b"\x07"
    for cosine, expected in ((0.97, [0, 1]), (0.99, [0, 0])):
        turned = cosine * np.eye(63)[0] + np.sqrt(1 - cosine**2) * np.eye(63)[1]
        assert duplicate_groups(["a", "b"], [looking(bits), looking(bits, turned)], 12).tolist() == expected


def test_counts_must_agree():
    with pytest.raises(ValueError, match="2 digests and 1 looks"):
        duplicate_groups(["a", "b"], [None], 0)


def test_twenty_thousand_hashes_group_within_seconds():
    """All pairs are 2e8; sharing a stretch of hash leaves a few thousand. Measured here: 0.2 s."""
    import time

    hashes = planted(np.random.default_rng(2), 20_000, 6)
    start = time.perf_counter()
    groups(hashes, 12)
    assert time.perf_counter() - start < 10
