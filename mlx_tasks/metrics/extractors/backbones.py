"""VGG16 and AlexNet up to LPIPS' taps, under torchvision's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_tasks.metrics.extractors.weights import Source, check_names, file_digest, find_weights, read_weights

POOL, TAP = "pool", "tap"


@dataclass(frozen=True)
class Backbone:
    """A plain stack of convolutions, each followed by ReLU.

    Attributes:
        source: of the weights.
        layers: in order: (index in torchvision's stack, inputs, outputs, kernel, stride, padding), "pool" or "tap".
        pool: (kernel, stride) of the maximum pools.
    """

    source: Source
    layers: tuple[tuple[int, int, int, int, int, int] | str, ...]
    pool: tuple[int, int]

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """Channels at each tap."""
        widths, last = [], 0
        for layer in self.layers:
            last = layer[2] if isinstance(layer, tuple) else last
            if layer == TAP:
                widths.append(last)
        return tuple(widths)

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes (torch's layout) of the feature stack in the published file."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            if isinstance(layer, tuple):
                index, inputs, outputs, kernel, _, _ = layer
                shapes[f"features.{index}.weight"] = (outputs, inputs, kernel, kernel)
                shapes[f"features.{index}.bias"] = (outputs,)
        return shapes


def _vgg() -> tuple[tuple[int, int, int, int, int, int] | str, ...]:
    layers: list[tuple[int, int, int, int, int, int] | str] = []
    index, inputs = 0, 3
    for group, (count, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        if group:
            layers.append(POOL)
            index += 1
        for _ in range(count):
            layers.append((index, inputs, width, 3, 1, 1))
            index, inputs = index + 2, width
        layers.append(TAP)
    return tuple(layers)


BACKBONES = {
    "vgg": Backbone(
        Source("vgg16", ("vgg16-397923af.pth", "vgg16.safetensors"), "torchvision's models"), _vgg(), (2, 2)
    ),
    "alex": Backbone(
        Source("alexnet", ("alexnet-owt-7be5be79.pth", "alexnet.safetensors"), "torchvision's models"),
        (
            (0, 3, 64, 11, 4, 2),
            TAP,
            POOL,
            (3, 64, 192, 5, 1, 2),
            TAP,
            POOL,
            (6, 192, 384, 3, 1, 1),
            TAP,
            (8, 384, 256, 3, 1, 1),
            TAP,
            (10, 256, 256, 3, 1, 1),
            TAP,
        ),
        (3, 2),
    ),
}


class FeatureStack:
    """A backbone with weights; call it for the maps at its taps."""

    def __init__(self, kind: str, path: Path | str | None = None) -> None:
        """`kind`: vgg or alex.  Raises: DataError as `find_weights` and `check_names`; the classifier may be there."""
        self.backbone = BACKBONES[kind]
        file = find_weights(self.backbone.source, path)
        weights = read_weights(file)
        shapes = self.backbone.expected_shapes()
        check_names({n: v for n, v in weights.items() if not n.startswith("classifier.")}, shapes, file)
        self.digest = file_digest(file)
        self._weights = {
            name: mx.array(weights[name].transpose(0, 2, 3, 1) if len(shape) == 4 else weights[name])
            for name, shape in shapes.items()
        }
        mx.eval(self._weights)

    def __call__(self, x: mx.array) -> list[mx.array]:
        """Maps (B, h, w, c) after the ReLU at each tap.  x: (B, H, W, 3), normalised."""
        taps = []
        for layer in self.backbone.layers:
            if layer == TAP:
                taps.append(x)
            elif isinstance(layer, tuple):
                index, _, _, _, stride, padding = layer
                kernel, bias = self._weights[f"features.{index}.weight"], self._weights[f"features.{index}.bias"]
                x = mx.maximum(mx.conv2d(x, kernel, stride, padding) + bias, 0)
            else:
                x = _pooled(x, *self.backbone.pool)
        return taps


def _pooled(x: mx.array, size: int, stride: int) -> mx.array:
    rows, columns = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    for axis, count in ((1, rows), (2, columns)):
        index = [slice(None)] * 4
        best = None
        for offset in range(size):
            index[axis] = slice(offset, offset + stride * (count - 1) + 1, stride)
            part = x[tuple(index)]
            best = part if best is None else mx.maximum(best, part)
        assert best is not None
        x = best
    return x
