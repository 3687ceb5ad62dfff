"""Inception v3 as the Frechet Inception Distance means it: the 2015 TensorFlow network with its own pooling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_tasks.metrics.extractors.preprocess import Preprocessing
from mlx_tasks.metrics.extractors.weights import Source, check_names, file_digest, find_weights, read_weights

SOURCE = Source(
    "inception_v3_fid",
    ("pt_inception-2015-12-05-6726825d.pth", "inception_v3_fid.safetensors"),
    "release fid_weights of github.com/mseitzer/pytorch-fid",
)
SIDE, EPSILON, CLASSES = 299, 1e-3, 1008
# (x - 128) / 128 for x in 0..255, as the TensorFlow graph does.
_HALF = (128 / 255, 128 / 255, 128 / 255)
PREPROCESSING = Preprocessing(SIDE, "bicubic", quantize=False, mean=_HALF, std=_HALF)


class Conv(NamedTuple):
    """A convolution without bias, then batch normalisation, then ReLU."""

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)


def _branch(block: str, name: str, channels: int, *convs: tuple[str, int, tuple[int, int], int]) -> tuple[Conv, ...]:
    """Convolutions in a row, each (suffix, outputs, kernel, stride); stride 1 keeps the size."""
    row = []
    for suffix, outputs, kernel, stride in convs:
        padding = (0, 0) if stride > 1 else (kernel[0] // 2, kernel[1] // 2)
        row.append(Conv(f"{block}.{name}{suffix}", channels, outputs, kernel, stride, padding))
        channels = outputs
    return tuple(row)


STEM = (
    Conv("Conv2d_1a_3x3", 3, 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", 32, 32, (3, 3)),
    Conv("Conv2d_2b_3x3", 32, 64, (3, 3), 1, (1, 1)),
    Conv("Conv2d_3b_1x1", 64, 80),
    Conv("Conv2d_4a_3x3", 80, 192, (3, 3)),
)
_1, _3, _5, _17, _71, _13, _31 = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)

Branches = dict[str, tuple[Conv, ...]]


def block_a(name: str, channels: int, pooled: int) -> Branches:
    """35 x 35: 1x1, 5x5, two 3x3, and an average pool."""
    return {
        "branch1x1": _branch(name, "branch1x1", channels, ("", 64, _1, 1)),
        "branch5x5": _branch(name, "branch5x5", channels, ("_1", 48, _1, 1), ("_2", 64, _5, 1)),
        "branch3x3dbl": _branch(
            name, "branch3x3dbl", channels, ("_1", 64, _1, 1), ("_2", 96, _3, 1), ("_3", 96, _3, 1)
        ),
        "branch_pool": _branch(name, "branch_pool", channels, ("", pooled, _1, 1)),
    }


def block_b(name: str, channels: int) -> Branches:
    """From 35 x 35 to 17 x 17."""
    return {
        "branch3x3": _branch(name, "branch3x3", channels, ("", 384, _3, 2)),
        "branch3x3dbl": _branch(
            name, "branch3x3dbl", channels, ("_1", 64, _1, 1), ("_2", 96, _3, 1), ("_3", 96, _3, 2)
        ),
    }


def block_c(name: str, channels: int, c: int) -> Branches:
    """17 x 17: factorised 7x7."""
    double = (("_1", c, _1, 1), ("_2", c, _71, 1), ("_3", c, _17, 1), ("_4", c, _71, 1), ("_5", 192, _17, 1))
    return {
        "branch1x1": _branch(name, "branch1x1", channels, ("", 192, _1, 1)),
        "branch7x7": _branch(name, "branch7x7", channels, ("_1", c, _1, 1), ("_2", c, _17, 1), ("_3", 192, _71, 1)),
        "branch7x7dbl": _branch(name, "branch7x7dbl", channels, *double),
        "branch_pool": _branch(name, "branch_pool", channels, ("", 192, _1, 1)),
    }


def block_d(name: str, channels: int) -> Branches:
    """From 17 x 17 to 8 x 8."""
    factored = (("_1", 192, _1, 1), ("_2", 192, _17, 1), ("_3", 192, _71, 1), ("_4", 192, _3, 2))
    return {
        "branch3x3": _branch(name, "branch3x3", channels, ("_1", 192, _1, 1), ("_2", 320, _3, 2)),
        "branch7x7x3": _branch(name, "branch7x7x3", channels, *factored),
    }


def block_e(name: str, channels: int) -> Branches:
    """8 x 8: branches that fork at their end."""
    fork = (
        Conv(f"{name}.branch3x3_2a", 384, 384, _13, 1, (0, 1)),
        Conv(f"{name}.branch3x3_2b", 384, 384, _31, 1, (1, 0)),
    )
    fork_dbl = tuple(conv._replace(name=conv.name.replace("3x3_2", "3x3dbl_3")) for conv in fork)
    return {
        "branch1x1": _branch(name, "branch1x1", channels, ("", 320, _1, 1)),
        "branch3x3": _branch(name, "branch3x3", channels, ("_1", 384, _1, 1)),
        "branch3x3_fork": fork,
        "branch3x3dbl": _branch(name, "branch3x3dbl", channels, ("_1", 448, _1, 1), ("_2", 384, _3, 1)),
        "branch3x3dbl_fork": fork_dbl,
        "branch_pool": _branch(name, "branch_pool", channels, ("", 192, _1, 1)),
    }


BLOCKS: dict[str, Branches] = {
    "Mixed_5b": block_a("Mixed_5b", 192, 32),
    "Mixed_5c": block_a("Mixed_5c", 256, 64),
    "Mixed_5d": block_a("Mixed_5d", 288, 64),
    "Mixed_6a": block_b("Mixed_6a", 288),
    "Mixed_6b": block_c("Mixed_6b", 768, 128),
    "Mixed_6c": block_c("Mixed_6c", 768, 160),
    "Mixed_6d": block_c("Mixed_6d", 768, 160),
    "Mixed_6e": block_c("Mixed_6e", 768, 192),
    "Mixed_7a": block_d("Mixed_7a", 768),
    "Mixed_7b": block_e("Mixed_7b", 1280),
    "Mixed_7c": block_e("Mixed_7c", 2048),
}


def convolutions() -> Iterator[Conv]:
    """Every convolution of the network."""
    yield from STEM
    for branches in BLOCKS.values():
        for row in branches.values():
            yield from row


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes (torch's layout) of the published file."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}
    for conv in convolutions():
        shapes[f"{conv.name}.conv.weight"] = (conv.outputs, conv.inputs, *conv.kernel)
        shapes |= {
            f"{conv.name}.bn.{part}": (conv.outputs,) for part in ("weight", "bias", "running_mean", "running_var")
        }
    return shapes


class InceptionV3:
    """The network with batch normalisation folded into the convolutions; `Extractor` of 2048 pool features.

    It differs from torchvision's Inception v3: average pools leave the padding out of their count, the last block pools
    by maximum, there are 1008 classes, and inputs are (x - 128) / 128.

    Source: Szegedy et al. 2016; Heusel et al. 2017 for its use; names as pytorch-fid's file has them.
    """

    name, dimension = "inception_v3_fid", 2048

    def __init__(self, path: Path | str | None = None) -> None:
        """Weights from `path` or wherever `find_weights` finds them.  Raises: DataError as it and `check_names`."""
        file = find_weights(SOURCE, path)
        weights = read_weights(file)
        check_names(weights, expected_shapes(), file, ignored=(".num_batches_tracked",))
        self._digest = file_digest(file)
        self._layers = {conv.name: _folded(weights, conv.name) for conv in convolutions()}
        self._head = mx.array(weights["fc.weight"].T)
        mx.eval(self._layers, self._head)

    @property
    def identity(self) -> dict[str, Any]:
        """Name, preprocessing and the weights' SHA-256."""
        return {"name": self.name, "weights": self._digest, "preprocessing": PREPROCESSING.as_dict()}

    def __call__(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """(N, 2048) float32 pool features of images (N, H, W, 1 or 3) uint8."""
        return self.features_and_logits(images, batch_size)[0]

    def features_and_logits(self, images: np.ndarray, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """((N, 2048), (N, 1008)): pool features, and logits without the bias, as the Inception Score takes them.

        The bias was left out by the TensorFlow score that tables quote; torch-fidelity calls them logits_unbiased.
        """
        features, logits = [], []
        for start in range(0, len(images), batch_size):
            pooled = self.pooled(mx.array(PREPROCESSING(images[start : start + batch_size])))
            scores = pooled @ self._head
            mx.eval(pooled, scores)
            features.append(np.array(pooled))
            logits.append(np.array(scores))
        return np.concatenate(features), np.concatenate(logits)

    def pooled(self, x: mx.array) -> mx.array:
        """(B, 2048) of preprocessed images (B, 299, 299, 3); any side of 75 or more will do."""
        for conv in STEM[:3]:
            x = self._conv(conv, x)
        x = _max_pool(x, 2)
        for conv in STEM[3:]:
            x = self._conv(conv, x)
        x = _max_pool(x, 2)
        for name, branches in BLOCKS.items():
            x = self._block(name, branches, x)
        return x.mean(axis=(1, 2))

    def _block(self, name: str, branches: Branches, x: mx.array) -> mx.array:
        outputs: list[mx.array] = []
        for branch, row in branches.items():
            if branch.endswith("_fork"):
                stem = outputs.pop()
                outputs += [self._conv(conv, stem) for conv in row]
                continue
            h = x
            if branch == "branch_pool":
                h = _max_pool(x, 1) if name == "Mixed_7c" else _average_pool(x)
            for conv in row:
                h = self._conv(conv, h)
            outputs.append(h)
        if "branch_pool" not in branches:
            outputs.append(_max_pool(x, 2))
        return mx.concatenate(outputs, axis=-1)

    def _conv(self, conv: Conv, x: mx.array) -> mx.array:
        kernel, bias = self._layers[conv.name]
        return mx.maximum(mx.conv2d(x, kernel, conv.stride, conv.padding) + bias, 0)


def _folded(weights: dict[str, np.ndarray], name: str) -> tuple[mx.array, mx.array]:
    """(kernel OHWI, bias) of a convolution with its batch normalisation: gamma (y - mean) / sqrt(var + eps) + beta."""
    gamma, beta, mean, variance = (
        weights[f"{name}.bn.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + EPSILON)
    kernel = weights[f"{name}.conv.weight"].transpose(0, 2, 3, 1) * scale[:, None, None, None]
    return mx.array(kernel.astype(np.float32)), mx.array((beta - mean * scale).astype(np.float32))


def _max_pool(x: mx.array, stride: int) -> mx.array:
    """3 x 3 maxima: with stride 2 inside the map, with stride 1 over a map padded by one."""
    if stride == 1:
        x = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    rows = (x.shape[1] - 3) // stride + 1
    columns = (x.shape[2] - 3) // stride + 1
    down = _most([x[:, i : i + stride * (rows - 1) + 1 : stride] for i in range(3)])
    return _most([down[:, :, i : i + stride * (columns - 1) + 1 : stride] for i in range(3)])


def _most(parts: list[mx.array]) -> mx.array:
    return mx.maximum(mx.maximum(parts[0], parts[1]), parts[2])


def _average_pool(x: mx.array) -> mx.array:
    """3 x 3 means with stride 1 over the pixels that are there: the padding is not counted."""
    _, height, width, _ = x.shape
    padded = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    down = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    total = down[:, :, :-2] + down[:, :, 1:-1] + down[:, :, 2:]
    return total / (_there(height)[:, None] * _there(width)[None, :])[None, :, :, None]


def _there(length: int) -> mx.array:
    """How many of three neighbours each place has."""
    places = mx.arange(length)
    return 1.0 + (places > 0) + (places < length - 1)
