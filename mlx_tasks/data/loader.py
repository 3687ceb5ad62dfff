"""What training reads: one split of a validated dataset, and which of its images each optimiser step sees."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json

SPLITS = ("train", "validation", "test")
"""The splits of a dataset, in the order in which their rows stand in the arrays."""


@dataclass(frozen=True)
class ImageSet:
    """One split at one resolution.

    Attributes:
        images: (N, R, R, C) uint8, read-only and mapped from the disk: a batch is read when it is indexed.
        labels: (N,) int32, positions in `class_names`; -1 throughout where the dataset has no labels.
        captions: N strings, NFC; empty where the source gave neither caption nor label.
        class_names: the dataset's classes, in index order; empty without labels.
    """

    images: np.ndarray
    labels: np.ndarray
    captions: list[str]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.images)


def load_split(dataset_folder: Path, resolution: int, split: str) -> ImageSet:
    """The images of one split, in manifest order.

    A split's rows are contiguous in the array file, so the images are a view of the mapped file, not a copy.
    Raises: DataError where the folder has no such resolution, or the manifest and the arrays disagree;
        ValueError for an unknown split.
    """
    import pandas as pd

    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}; got {split!r}")
    path = dataset_folder / "images" / f"{resolution}.npy"
    if not path.is_file():
        there = sorted(int(p.stem) for p in path.parent.glob("*.npy"))
        raise DataError(f"{dataset_folder} has no images of side {resolution}, only {there}: run the validate stage")
    columns = ["index", "class_index", "caption", "split"]
    manifest = pd.read_parquet(dataset_folder / "manifest.parquet", columns=columns)
    accepted = int(np.count_nonzero(manifest["index"].to_numpy() >= 0))
    rows = manifest.loc[manifest["split"].to_numpy() == split].sort_values(by="index")
    indices = rows["index"].to_list()
    first, last = (indices[0], indices[-1]) if indices else (0, -1)
    arrays = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(arrays) != accepted or last - first + 1 != len(rows):
        raise DataError(
            f"{path} holds {len(arrays)} images and the manifest {accepted}, {len(rows)} of them {split} "
            f"(rows {first} to {last}): run the validate stage again"
        )
    return ImageSet(
        images=np.asarray(arrays[first : last + 1]),
        labels=rows["class_index"].to_numpy(np.int32),
        captions=[str(caption) for caption in rows["caption"]],
        class_names=[str(name) for name in read_json(dataset_folder / "classes.json")],
    )


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Positions of the images that optimiser step `step` (from 0) sees: the data position is the step itself.

    Images come from an endless stream of shuffled epochs; batch k is positions k*batch_size .. (k+1)*batch_size - 1 of
    it. Epoch e's order depends on (seed, e) alone, so nothing has to be saved to go on from step k, and no image is
    seen twice before all have been seen once, also where batch_size does not divide count or exceeds it.
    Returns: (batch_size,) int64 in [0, count).  Raises: ValueError for count or batch_size below 1, or step below 0.
    """
    if count < 1 or batch_size < 1 or step < 0:
        raise ValueError(
            f"a batch needs count >= 1, batch_size >= 1 and step >= 0; got {count}, {batch_size} and {step}"
        )
    start = step * batch_size
    epochs = range(start // count, (start + batch_size - 1) // count + 1)
    stream = np.concatenate([_epoch_order(count, seed, epoch) for epoch in epochs])
    offset = start - epochs[0] * count
    return stream[offset : offset + batch_size]


@functools.lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.setflags(write=False)
    return order


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 0..255 as float32 in [-1, 1]: x / 127.5 - 1. Any shape."""
    return np.asarray(images, np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] as uint8, clipped and rounded: the inverse of `to_float` on its own values. Any shape.

    Raises: ValueError where a value is not finite, since it has no place in an image.
    """
    values = np.asarray(images, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{np.size(values) - int(np.isfinite(values).sum())} of {values.size} pixels are not finite")
    return np.rint(np.clip((values + 1) * 127.5, 0, 255)).astype(np.uint8)
