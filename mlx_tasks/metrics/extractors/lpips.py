"""LPIPS: how different two images look, from the features of a classifier and weights learned from people."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.bootstrap import bootstrap_mean
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.metrics.extractors.backbones import FeatureStack
from mlx_tasks.metrics.extractors.base import rgb_images
from mlx_tasks.metrics.extractors.weights import Source, check_names, file_digest, find_weights, read_weights

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Lpips:
    """The distance of version 0.1: d = sum over taps of mean over places of sum_c w_c (f(a) - f(b))_c^2.

    f is a tap's map, at each place divided by its length over the channels; w are the learned heads.
    Source: Zhang et al. 2018, Eq. 1 and Section 3.2 ("lin").
    """

    def __init__(
        self, net: Literal["alex", "vgg"] = "alex", path: Path | str | None = None, heads: Path | str | None = None
    ) -> None:
        """path: the backbone's weights; heads: the learned ones, by default those of the lpips package.

        Raises: DataError where either cannot be had or does not fit.
        """
        self.net, self.stack = net, FeatureStack(net, path)
        self.name = f"lpips_{net}"
        file = _find_heads(net, heads)
        channels = self.stack.backbone.tap_channels
        weights = read_weights(file)
        check_names(weights, {f"lin{i}.model.1.weight": (1, c, 1, 1) for i, c in enumerate(channels)}, file)
        self._heads_digest = file_digest(file)
        self._heads = [mx.array(weights[f"lin{i}.model.1.weight"].reshape(-1)) for i in range(len(channels))]

    @property
    def identity(self) -> dict[str, Any]:
        """Name and both files' SHA-256; images are taken at their own size."""
        return {"name": self.name, "weights": self.stack.digest, "heads": self._heads_digest}

    def __call__(self, a: np.ndarray, b: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """(N,) distances of pairs; a, b: (N, H, W, 1 or 3) uint8, at least 32 pixels a side for alex, 16 for vgg.

        Raises: DataError for unequal shapes or images that are too small for the last tap.
        """
        a, b = rgb_images(a), rgb_images(b)
        least = {"alex": 32, "vgg": 16}[self.net]
        if a.shape != b.shape or min(a.shape[1:3]) < least:
            raise DataError(f"pairs must have one shape of at least {least} pixels a side, got {a.shape} and {b.shape}")
        found = []
        for start in range(0, len(a), batch_size):
            pair = [_scaled(x[start : start + batch_size]) for x in (a, b)]
            found.append(np.array(self.distance(*pair)))
        return np.concatenate(found).astype(np.float64)

    def distance(self, a: mx.array, b: mx.array) -> mx.array:
        """(B,) for images already scaled."""
        total = mx.zeros(len(a))
        for head, one, other in zip(self._heads, self.stack(a), self.stack(b), strict=True):
            gap = mx.square(_directions(one) - _directions(other))
            total = total + (gap * head).sum(axis=-1).mean(axis=(1, 2))
        return total


def lpips_diversity(
    lpips: Lpips, images: np.ndarray, labels: np.ndarray | None, seed: int, pairs: int = 200, confidence: float = 0.95
) -> Estimate:
    """Mean distance of random pairs of different images inside a class: 0 for a model that draws one image a class.

    images: (N, H, W, C) uint8; labels: (N,), None for one class. The interval is a bootstrap over the pairs.
    Raises: DataError where no class has two images.
    """
    generator = np.random.Generator(np.random.PCG64([seed, len(images)]))
    groups = [np.arange(len(images))] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    groups = [rows for rows in groups if len(rows) > 1]
    if not groups:
        raise DataError("a diversity needs a class with at least two images")
    chosen = [generator.choice(groups[i % len(groups)], 2, replace=False) for i in range(pairs)]
    one, other = np.array(chosen).T
    return bootstrap_mean(lpips(images[one], images[other]), 1000, confidence, seed)


def _scaled(images: np.ndarray) -> mx.array:
    return (mx.array(images.astype(np.float32)) / 127.5 - 1.0 - mx.array(_SHIFT)) / mx.array(_SCALE)


def _directions(x: mx.array) -> mx.array:
    return x / (mx.sqrt(mx.square(x).sum(axis=-1, keepdims=True)) + _EPSILON)


def _find_heads(net: str, path: Path | str | None) -> Path:
    source = Source(
        f"lpips_{net}", (f"{net}.pth", f"lpips_{net}.safetensors"), "folder weights/v0.1 of the lpips package"
    )
    if path is None:
        package = importlib.util.find_spec("lpips")
        if package and package.origin:
            inside = Path(package.origin).parent / "weights" / "v0.1" / f"{net}.pth"
            if inside.is_file():
                return inside
    return find_weights(source, path)
