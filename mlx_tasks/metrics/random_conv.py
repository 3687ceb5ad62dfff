"""An untrained feature space: fixed random convolutions, pooled at several scales, projected to a few dimensions.

Why untrained: a small trained classifier keeps what separates its classes and drops the rest, so a per-class pixel
Gaussian scores better there than a good sampler does. Random filters keep everything a little, and their second-order
pooling reacts to blur, noise and missing modes in the order in which people do (benchmarks/metric_sanity.py).
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks.metrics.normal import normal

WIDTHS = (32, 64, 64)
"""Filters of the first levels; deeper levels, made for larger images, repeat the last."""

POOLS = (1, 2)
"""Cells along a side in which each map's mean and deviation are taken."""

SCALE = 3.5
"""Puts held-out digits near 0.017 and a blurred copy near 0.4; a unit, nothing more."""


class RandomConvFeatures:
    """Maps images to a fixed random feature space; an `Extractor`.

    Each level: 3x3 convolution with Gaussian filters of unit norm (those of the first level sum to zero, so that flat
    grey says nothing), a small random bias, ReLU; the mean and the standard deviation of every map in 1x1 and 2x2
    cells are kept; 2x2 average pooling leads to the next level. All kept numbers go through one random orthogonal
    projection. Weights come from Philox's raw 64-bit words, which numpy guarantees, so they are the same everywhere.

    Source: random features as in Rahimi & Recht 2007; untrained networks as feature spaces for Frechet distances as in
    Naeem et al. 2020, section 4 (there VGG, here small enough for a CPU).
    """

    def __init__(self, channels: int, seed: int = 0, dimension: int = 64) -> None:
        """Space for images with `channels` channels, of at most `dimension` features.  Raises: ValueError below 1."""
        if channels < 1 or dimension < 1:
            raise ValueError(f"channels and dimension must be at least 1, got {channels} and {dimension}")
        self.channels = channels
        self.seed = seed
        self.dimension = dimension
        self._projections: dict[int, np.ndarray] = {}

    name = "random_conv"

    @property
    def identity(self) -> dict[str, Any]:
        """Name, seed, sizes: features of equal ones compare, for images of one size."""
        return {"name": self.name, "seed": self.seed, "channels": self.channels, "dimension": self.dimension}

    def __call__(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Features of images: (N, D) float64.

        Args:
            images: (N, H, W, C) in [-1, 1], or uint8, which is mapped there.
            batch_size: images of one pass; it changes memory, never results beyond rounding.

        Raises: ValueError where the shape is not (N, H, W, C) with this space's C, or a side is under 4 pixels.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != self.channels or min(images.shape[1:3]) < 4:
            raise ValueError(f"images must be (N, H>=4, W>=4, {self.channels}), got {images.shape}")
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 127.5 - 1
        weights = self._weights(min(images.shape[1:3]))
        parts = []
        for start in range(0, len(images), batch_size):
            pooled = _pooled(mx.array(images[start : start + batch_size].astype(np.float32)), weights)
            parts.append(np.array(pooled).astype(np.float64))
        pooled = np.concatenate(parts)
        return pooled @ self._projection(pooled.shape[1])

    def _weights(self, side: int) -> list[tuple[mx.array, mx.array]]:
        weights, fan_in = [], self.channels
        for level in range(max(len(WIDTHS), int(math.log2(side)) - 1)):
            width = WIDTHS[min(level, len(WIDTHS) - 1)]
            filters = normal((width, 3, 3, fan_in), self.seed, 2 * level)
            if level == 0:
                filters -= filters.mean(axis=(1, 2), keepdims=True)
            filters *= math.sqrt(2) / np.sqrt((filters**2).sum(axis=(1, 2, 3), keepdims=True))
            bias = 0.1 * normal((width,), self.seed, 2 * level + 1)
            weights.append((mx.array(filters.astype(np.float32)), mx.array(bias.astype(np.float32))))
            fan_in = width
        return weights

    def _projection(self, size: int) -> np.ndarray:
        """(size, D) with orthonormal columns, times SCALE; drawn once for each size."""
        if size not in self._projections:
            dimension = min(self.dimension, size)
            q, r = np.linalg.qr(normal((size, dimension), self.seed, 1_000_000 + size))
            self._projections[size] = SCALE * q * np.sign(np.diag(r))
        return self._projections[size]


def _pooled(h: mx.array, weights: list[tuple[mx.array, mx.array]]) -> mx.array:
    """(N, F) means and deviations of every level's maps.  h: (N, H, W, C)."""
    kept = []
    for filters, bias in weights:
        padded = mx.pad(h, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
        h = mx.maximum(mx.conv2d(padded, filters) + bias, 0)
        for cells in POOLS:
            if min(h.shape[1:3]) >= cells:
                kept.extend(_moments(h, cells))
        if min(h.shape[1:3]) < 2:
            break
        h = _halved(h)
    return mx.concatenate(kept, axis=1)


def _moments(h: mx.array, cells: int) -> tuple[mx.array, mx.array]:
    """Mean and standard deviation of each map in each of cells x cells equal cells, weighted by the cells' number."""
    h = h[:, : h.shape[1] // cells * cells, : h.shape[2] // cells * cells]
    n, height, width, c = h.shape
    grouped = h.reshape(n, cells, height // cells, cells, width // cells, c)
    mean = mx.mean(grouped, axis=(2, 4))
    deviation = mx.sqrt(mx.var(grouped, axis=(2, 4)) + 1e-6)
    return mean.reshape(n, -1) / cells, deviation.reshape(n, -1) / cells


def _halved(h: mx.array) -> mx.array:
    """2x2 average pooling; an odd last row or column is dropped."""
    h = h[:, : h.shape[1] // 2 * 2, : h.shape[2] // 2 * 2]
    n, height, width, c = h.shape
    return mx.mean(h.reshape(n, height // 2, 2, width // 2, 2, c), axis=(2, 4))
