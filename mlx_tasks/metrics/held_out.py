"""What everything is scored against: images of the test split, and the splits beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_tasks.config import Config
from mlx_tasks.data.loader import ImageSet, load_split
from mlx_tasks.errors import DataError
from mlx_tasks.metrics.references import held_out_rows

LEAST = 10
"""Held-out images below which nothing is scored."""


@dataclass(frozen=True)
class HeldOut:
    """The images that every row is scored against, chosen by the seed, and what is made of the other splits.

    Attributes:
        images: (N, H, W, C) uint8 of the test split.
        labels: (N,) their classes: what every candidate is asked to draw.
        captions: N captions, or None where images are not drawn to captions.
        class_names: the dataset's classes; empty without labels.
        test_images: images of the whole test split.
        train: the training split, from which the reference sets are made.
        validation: images that no stage trains on and nothing is scored against.
    """

    images: np.ndarray
    labels: np.ndarray
    captions: list[str] | None
    class_names: list[str]
    test_images: int
    train: ImageSet
    validation: ImageSet

    def __len__(self) -> int:
        return len(self.images)

    @property
    def conditional(self) -> bool:
        """Whether models are told the class."""
        return bool(self.class_names)


def open_held_out(work: Path, config: Config) -> HeldOut:
    """The held-out images of a workspace's dataset.  Raises: DataError where there are fewer than 10."""
    train, validation, test = (
        load_split(work / "dataset", config.resolution, split) for split in ("train", "validation", "test")
    )
    count = min(config.evaluate.samples, len(test))
    if count < LEAST:
        raise DataError(f"the test split has {len(test)} images, too few to score against: at least {LEAST} are needed")
    rows = held_out_rows(len(test), count, config.seed)
    captions = [test.captions[i] for i in rows] if test.class_names else None
    return HeldOut(
        np.array(test.images[rows]), test.labels[rows], captions, list(test.class_names), len(test), train, validation
    )
