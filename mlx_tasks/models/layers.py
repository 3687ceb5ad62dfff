"""Normalisation, rows of an embedding, and the layers that double and halve an image."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks import hardware
from mlx_tasks.models.convolution import DoublingConv, HalvingConv

ROWS = 4
"""That a BLAS takes at once (MKL's and OpenBLAS' float32 kernels work on multiples of four rows)."""


class GroupNorm(nn.GroupNorm):
    """Torch's GroupNorm: mean 0 and variance 1 over the positions and channels of a group, then a scale and a shift.

    Args:
        groups: of consecutive channels.
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__(groups, channels, eps=eps, pytorch_compatible=True)
        self._on_cpu = hardware.detect().kind == "cpu"

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, H, W, C) -> (B, H, W, C)."""
        if self._on_cpu:
            return group_norm(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().__call__(x)


def group_norm(x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float) -> mx.array:
    """GroupNorm by two sums over positions and no transposition of the image, MLX's own form of it.

    x: (B, H, W, C); weight, bias: (C,) -> (B, H, W, C).
    """
    batch, height, width, channels = x.shape
    grouped = (batch, groups, channels // groups)
    count = height * width * channels // groups

    def mean_of_groups(values: mx.array) -> mx.array:
        """Mean of (B, H W, C) over positions and group, at every channel: (B, 1, C)."""
        sums = values.sum(axis=1).reshape(grouped).sum(axis=-1, keepdims=True)
        return mx.broadcast_to(sums / count, grouped).reshape(batch, 1, channels)

    flat = x.reshape(batch, height * width, channels)
    centred = flat - mean_of_groups(flat)
    scale = mx.rsqrt(mean_of_groups(mx.square(centred)) + eps) * weight
    return (centred * scale + bias).reshape(x.shape)


class RowLinear(nn.Linear):
    """A linear layer for one vector an image, whose result for a row is the same bits whatever rows are beside it.

    A BLAS takes other paths for the last one to three of its rows, which is where an image's rounding would come to
    depend on its batch; rows in fours never meet them. Layers over an image's positions have rows enough.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, C) -> (B, C')."""
        missing = -len(x) % ROWS
        if missing == 0:
            return super().__call__(x)
        return super().__call__(mx.pad(x, [(0, missing), (0, 0)]))[: len(x)]


class Downsample2D(nn.Module):
    """A learned halving, under diffusers' name: the convolution sits one level down, as `conv`."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = HalvingConv(channels, padding)

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, H, W, C) -> (B, H/2, W/2, C)."""
        return self.conv(x)


class Upsample2D(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution, named as `Downsample2D`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DoublingConv(channels)

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, H, W, C) -> (B, 2H, 2W, C)."""
        return self.conv(x)
