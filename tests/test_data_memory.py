"""Memory of a large dataset: bounded bytes an image, in a process of its own; near duplicates in crowds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from mlx_tasks.data import near
from mlx_tasks.data.arrays import ArrayRows, SquareStore
from mlx_tasks.data.duplicates import duplicate_groups
from mlx_tasks.data.measures import Looks

BYTES_AN_IMAGE = 2000
"""The stage's own work; docs/data.md has what was measured."""

SCRIPT = """
import json, resource, sys, tempfile
from pathlib import Path
from mlx_tasks.data.arrays import SquareStore
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.inspection import inspect_one
from mlx_tasks.data.listing import Candidate, Listing
from mlx_tasks.data.manifest import build_manifest
from mlx_tasks.data.records import Records
from mlx_tasks.data.sources import Source
import numpy as np

count, folder = int(sys.argv[1]), sys.argv[2]
pixels = np.random.default_rng(0).integers(0, 256, (500, 16, 16), dtype=np.uint8)
listing = Listing()
with tempfile.TemporaryDirectory(dir=folder) as scratch, SquareStore(Path(scratch), count, (16, 64), 3) as store:
    records = Records(count)
    for row in range(count):
        one = np.roll(pixels[row % 500], row // 500)
        listing.append(f"class_{row % 4}/{row:07}.jpg", label=f"class_{row % 4}", caption=f"class {row % 4}")
        seen = inspect_one(Candidate("", pixels=one), Rules(8, 1000, 3.0), (16, 64), "rgb")
        store.put(row, seen.squares)
        records.append(seen)
    frame, _, order = build_manifest(Source("s", listing), records, 12, {"test": 0.25, "validation": 0.1}, 0)
    store.write(Path(scratch) / "images", order, 3)
    frame.to_parquet(Path(scratch) / "manifest.parquet")
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))
"""


def peak_bytes(count: int, folder: Path) -> int:
    """Peak resident memory of looking at, grouping and writing `count` images."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(count), str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(found.stdout)


@pytest.mark.slow
def test_an_image_more_takes_less_than_two_kilobytes(tmp_path):
    """Its squares alone, mapped, would be 26 kilobytes at these resolutions."""
    few, many = 2000, 12_000
    grown = peak_bytes(many, tmp_path) - peak_bytes(few, tmp_path)
    assert grown < BYTES_AN_IMAGE * (many - few)


def crowd(rng: np.random.Generator, count: int, alike: int) -> Looks:
    """Looks of smooth pictures: few bits set, shapes of few dimensions; `alike` of them are of one picture."""
    looks = Looks.empty(count)
    shapes = rng.normal(size=(count, 63)) * (np.arange(63) < 4)
    shapes[: count // 4] = shapes[count // 4 : 2 * (count // 4)] + rng.normal(size=(count // 4, 63)) * 0.02
    shapes[count - alike :] = shapes[-1] + rng.normal(size=(alike, 63)) * 0.02
    looks.shapes[:] = shapes / np.linalg.norm(shapes, axis=1, keepdims=True)
    looks.bits[:, :2] = rng.integers(0, 256, (count, 2)) & rng.integers(0, 256, (count, 2))
    looks.known[:] = True
    return looks


@pytest.mark.parametrize("distance", [0, 3, 12])
@pytest.mark.parametrize("alike", [0, 500])
def test_groups_of_a_crowd_are_the_components_of_all_pairs(monkeypatch, distance, alike):
    """Bits that tell nothing: nearly all rows are in crowds, and space is cut into tiles of sixty-four."""
    monkeypatch.setattr(near, "_TILE", 64)
    looks = crowd(np.random.default_rng([distance, alike]), 1500, alike)
    bits = np.unpackbits(looks.bits, axis=1).astype(np.int32)
    apart = bits.sum(1)[:, None] + bits.sum(1)[None, :] - 2 * bits @ bits.T
    shapes = looks.shapes.astype(np.float64)
    expected = connected_components((apart <= distance) & (shapes @ shapes.T >= near.MIN_COSINE), directed=False)[1]
    found = duplicate_groups(np.arange(1500), looks, distance)
    assert len(np.unique(found)) == len(np.unique(expected)) == len(np.unique(np.stack([found, expected]), axis=1).T)


def test_ten_thousand_pictures_of_one_thing_are_one_group_and_few_comparisons(monkeypatch):
    """All pairs are fifty million; those in one group already are not compared."""
    compared = []
    whole = near._near_in_tile

    def counted(bits, shapes, ones, others, distance, find):
        compared.append(len(ones) * len(ones if others is None else others))
        yield from whole(bits, shapes, ones, others, distance, find)

    monkeypatch.setattr(near, "_near_in_tile", counted)
    looks = crowd(np.random.default_rng(0), 10_000, 10_000)
    looks.bits[:] = looks.bits[0]
    assert set(duplicate_groups(np.arange(10_000), looks, 12).tolist()) == {0}
    assert sum(compared) < 20e6


def test_rows_read_from_a_file_are_the_rows_put_in(tmp_path):
    """Rows put out of order, one never, and written in the order of splits."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(49)[:30]
    with SquareStore(tmp_path, 50, (6,), 3) as store:
        for row in np.random.default_rng(2).permutation(49):
            store.put(int(row), {6: pixels[row]})
        store.write(tmp_path / "images", order, 3)
        store.write(tmp_path / "grey", order, 1)
    np.testing.assert_array_equal(np.load(tmp_path / "images" / "6.npy"), pixels[order])
    np.testing.assert_array_equal(np.load(tmp_path / "grey" / "6.npy"), pixels[order][..., :1])
    np.testing.assert_array_equal(ArrayRows(tmp_path / "images" / "6.npy")[[7, 3, 29]], pixels[order[[7, 3, 29]]])
    assert not list(tmp_path.glob(".rows*"))


def test_grey_rows_stand_in_all_three_channels(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (4, 4, 1), dtype=np.uint8)
    with SquareStore(tmp_path, 1, (4,), 3) as store:
        store.put(0, {4: grey})
        store.write(tmp_path / "images", np.array([0]), 3)
    np.testing.assert_array_equal(np.load(tmp_path / "images" / "4.npy")[0], np.repeat(grey, 3, axis=-1))
