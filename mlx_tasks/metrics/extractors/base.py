"""What every feature extractor is, whoever trained it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol

import numpy as np

from mlx_tasks.errors import DataError


class Extractor(Protocol):
    """Images in, features out.

    Attributes:
        name: short and fixed, such as `inception_v3_fid` or `random_conv`.
        dimension: numbers an image.
        identity: plain JSON values that say whether two sets of features compare: name, preprocessing, and a digest of
            the weights or the seed that they come from.
    """

    name: str
    dimension: int

    @property
    def identity(self) -> dict[str, Any]: ...

    def __call__(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """(N, dimension) features of images (N, H, W, C) uint8; batch_size changes memory, not results."""
        ...


def identity_digest(identity: dict[str, Any]) -> str:
    """16 hex digits that are equal for equal identities."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def rgb_images(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 of images with one or three channels; grey is repeated.

    Raises: DataError naming the shape, the type or the rule for anything else: published networks know colour images
        of 8 bits only.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images) or not min(images.shape[1:3]):
        raise DataError(f"images must be (N >= 1, H, W, 1 or 3), got {images.shape}: convert them to RGB or grey first")
    if images.dtype != np.uint8:
        raise DataError(f"images must be uint8, got {images.dtype}: use data.loader.to_uint8, which refuses NaN")
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
