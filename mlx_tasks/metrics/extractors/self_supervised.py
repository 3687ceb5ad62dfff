"""The built-in learned feature space: the encoder of a small denoiser, taught by the training images without labels."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_write_bytes, read_json, write_json
from mlx_tasks.metrics.extractors.weights import check_names, file_digest
from mlx_tasks.metrics.normal import normal

NAME = "self_supervised"
WEIGHTS, FACTS = "model.safetensors", "model.json"
CELLS = (1, 2)
"""Cells along a side in which each map's mean and deviation are taken."""


@dataclass(frozen=True)
class FeatureConfig:
    """Sizes, kept beside the weights.

    Attributes:
        channels: colour channels of the images.
        side: pixels of a side; deeper levels are added for larger images.
        width: maps of the first level; later ones have twice as many.
        dimension: features. Few, because the covariance of a few hundred images is steady only there.
    """

    channels: int
    side: int
    width: int = 32
    dimension: int = 32

    @property
    def widths(self) -> tuple[int, ...]:
        """Maps of each level; 2 x 2 average pooling lies between two, down to maps of 4 to 7 pixels a side."""
        levels = max(2, int(math.log2(self.side)) - 1)
        return (self.width, *(2 * self.width for _ in range(levels - 1)))

    @property
    def moments(self) -> int:
        """Means and deviations of all levels' maps in all cells."""
        return 2 * sum(self.widths) * sum(cells * cells for cells in CELLS)


class Encoder(nn.Module):
    """Convolutions with ReLU and average pooling between them; call it for every level's maps."""

    def __init__(self, config: FeatureConfig, seed: int = 0) -> None:
        """First weights of variance 2 / fan-in from `seed`, biases zero.  Raises: DataError below 8 pixels a side."""
        super().__init__()
        if config.side < 8:
            raise DataError(f"features need images of at least 8 pixels a side, got {config.side}")
        self.config = config
        widths = (config.channels, *config.widths)
        self.convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
        initialise(self, seed)

    def __call__(self, images: mx.array) -> list[mx.array]:
        """Maps (B, h, w, c) of each level.  images: (B, H, W, C) in [-1, 1]."""
        maps, h = [], images
        for level, conv in enumerate(self.convs):
            h = mx.maximum(conv(halved(h) if level else h), 0)
            maps.append(h)
        return maps


def halved(h: mx.array) -> mx.array:
    """2 x 2 average pooling; an odd last row or column is dropped."""
    b, height, width, c = h.shape
    h = h[:, : height // 2 * 2, : width // 2 * 2]
    return h.reshape(b, height // 2, 2, width // 2, 2, c).mean(axis=(2, 4))


def initialise(module: nn.Module, seed: int) -> None:
    """Matrices and kernels unit normal times sqrt(2 / fan-in), biases zero, the same on every platform."""
    drawn = []
    for place, (name, value) in enumerate(tree_flatten(module.parameters())):
        shape: tuple[int, ...] = np.shape(value)
        if len(shape) > 1:
            weights = normal(shape, seed, 500 + place) * math.sqrt(2 / math.prod(shape[1:]))
        else:
            weights = np.zeros(shape)
        drawn.append((name, mx.array(weights.astype(np.float32))))
    module.load_weights(drawn)


class SelfSupervisedFeatures:
    """An `Extractor`: means and deviations of the encoder's maps, on the main axes of the training images.

    The projection keeps the `dimension` directions in which the training images vary most and divides by their total
    deviation, so that values of different datasets are of one size; they still do not compare.
    """

    name = NAME

    def __init__(self, encoder: Encoder, centre: np.ndarray, projection: np.ndarray, digest: str = "") -> None:
        """centre: (M,) and projection: (M, D) of the moments, from `fit_projection`."""
        self.encoder, self.centre, self.projection, self._digest = encoder, centre, projection, digest
        self.dimension = projection.shape[1]

    @property
    def identity(self) -> dict[str, Any]:
        """Name, sizes and the weights' SHA-256: features of two trainings do not compare."""
        return {"name": self.name, "weights": self._digest, **asdict(self.encoder.config)}

    def __call__(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """(N, dimension) float64 of images (N, H, W, C) uint8.  Raises: DataError for another size or type."""
        return (encoder_moments(self.encoder, images, batch_size) - self.centre) @ self.projection


def encoder_moments(encoder: Encoder, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """(N, M) float64 moments of images (N, H, W, C) uint8.  Raises: DataError for another size or type."""
    config = encoder.config
    if images.ndim != 4 or images.shape[1:] != (config.side, config.side, config.channels):
        told = f"{config.side} x {config.side} x {config.channels}"
        raise DataError(f"these features are of images {told}, got {images.shape[1:]}")
    if images.dtype != np.uint8:
        raise DataError(f"images must be uint8, got {images.dtype}: use data.loader.to_uint8")
    parts = []
    for start in range(0, len(images), batch_size):
        batch = mx.array(images[start : start + batch_size].astype(np.float32) / np.float32(127.5) - 1)
        kept = [part for h in encoder(batch) for cells in CELLS for part in _moments(h, cells)]
        parts.append(np.array(mx.concatenate(kept, axis=1)).astype(np.float64))
    return np.concatenate(parts)


def fit_projection(moments: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """(centre (M,), projection (M, D)): principal axes of (N, M) moments over the root of their total variance.

    D is `dimension` or the number of directions in which the rows vary, whichever is less; each axis points to where
    its largest entry is positive, so that the same rows give the same features.
    """
    centre = moments.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((moments - centre).T))
    there = int((values > 1e-10 * values[-1]).sum())
    axes = vectors[:, ::-1][:, : min(dimension, there)]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return centre, axes * signs / math.sqrt(max(values.sum(), 1e-12))


def save_features(features: SelfSupervisedFeatures, folder: Path, facts: dict[str, Any]) -> None:
    """Write model.safetensors and model.json (config and the caller's facts) into `folder`."""
    from safetensors.numpy import save

    arrays = {f"encoder.{name}": np.array(value) for name, value in tree_flatten(features.encoder.parameters())}
    arrays |= {"centre": features.centre, "projection": np.ascontiguousarray(features.projection)}
    atomic_write_bytes(folder / WEIGHTS, save(arrays))
    write_json(folder / FACTS, {"name": NAME, "config": asdict(features.encoder.config), **facts})


def load_features(folder: Path) -> SelfSupervisedFeatures:
    """The extractor of a folder.  Raises: DataError where a file is missing, damaged or does not fit the other."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        encoder = Encoder(FeatureConfig(**read_json(folder / FACTS)["config"]))
        arrays = load_file(folder / WEIGHTS)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} holds no features ({error}): run `mlx-tasks features`") from None
    size = encoder.config.moments
    shapes: dict[str, Any] = {f"encoder.{n}": np.shape(value) for n, value in tree_flatten(encoder.parameters())}
    width = arrays["projection"].shape[-1] if "projection" in arrays else 0
    check_names(arrays, {**shapes, "centre": (size,), "projection": (size, width)}, folder / WEIGHTS)
    encoder.load_weights([(n.removeprefix("encoder."), mx.array(arrays[n])) for n in shapes])
    mx.eval(encoder.parameters())
    return SelfSupervisedFeatures(encoder, arrays["centre"], arrays["projection"], file_digest(folder / WEIGHTS))


def _moments(h: mx.array, cells: int) -> tuple[mx.array, mx.array]:
    """Mean and deviation of each map in each of cells x cells equal cells, over the number of cells along a side."""
    h = h[:, : h.shape[1] // cells * cells, : h.shape[2] // cells * cells]
    n, height, width, c = h.shape
    grouped = h.reshape(n, cells, height // cells, cells, width // cells, c)
    mean, deviation = grouped.mean(axis=(2, 4)), mx.sqrt(grouped.var(axis=(2, 4)) + 1e-6)
    return mean.reshape(n, -1) / cells, deviation.reshape(n, -1) / cells
