"""What a version must show before it serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_tasks.errors import DataError, DivergedError

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

IMAGES = 32
SEED = 2_000_003
"""Of the images of a bundle without a reference."""
FAR = 0.05
"""Relative distance of the features from the registered ones up to which these are the registered images: another
device rounds otherwise, another model is at 0.3 and more (tests/test_serving_checks.py)."""


def check_before_serving(folder: Path, bundle: Bundle, rows: int = 32) -> None:
    """Draw a few images, and refuse the bundle unless they are sane.

    Finite, none of one colour, not all alike; and with a registered reference, the very images of its first seeds.
    rows: of one network call, both guidance branches counted.
    Raises: DataError saying what is wrong.
    """
    from mlx_tasks.registry.draw import draw
    from mlx_tasks.registry.reference import FOLDER, REFERENCE_SEED, read_reference

    names = bundle.sampler.class_names
    reference = read_reference(folder) if (folder / FOLDER).is_dir() else None
    count = min(IMAGES, len(reference.labels)) if reference else IMAGES
    labels = reference.labels[:count].tolist() if reference else [i % len(names) if names else -1 for i in range(count)]
    first = REFERENCE_SEED if reference else SEED
    try:
        images = draw(bundle, labels, list(range(first, first + count)), max(1, rows // 2))
    except DivergedError as error:
        raise DataError(f"{folder.name} gives images that are not finite: {error}") from None
    flat = int((images.reshape(count, -1).std(axis=1) == 0).sum())
    if flat:
        raise DataError(f"{folder.name} gives {flat} images of one colour out of {count}")
    if not images.astype(float).std(axis=0).any():
        raise DataError(f"{folder.name} gives the same image for every seed")
    if reference is not None:
        stored = reference.generated[:count]
        away = float(np.linalg.norm(reference.features(images) - stored) / np.linalg.norm(stored - stored.mean(axis=0)))
        if not away <= FAR:
            raise DataError(
                f"{folder.name} does not draw the images it was registered with: their features are {away:.2g} of the "
                f"images' own spread away, allowed {FAR:g}"
            )
