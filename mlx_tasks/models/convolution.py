"""Convolutions in the form that is fast where they run; parameters and values are the same everywhere.

On MLX's CPU the backward pass of a strided convolution takes some twenty times the forward one, and a doubled image is
four times the work of its original. benchmarks/cpu_kernels.py prints what the forms chosen there gain.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks import hardware
from mlx_tasks.models.elementary import with_gradient


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution as the matrix product it is.  x: (B, H, W, I) -> (B, H, W, O)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.addmm(self.bias, x, self.weight[:, 0, 0].T)


class HalvingConv(nn.Conv2d):
    """A 3x3 convolution of stride 2.  x: (B, H, W, C) -> (B, H/2, W/2, C), H and W even.

    Args:
        channels: in and out.
        before: rows (and columns) of zeros in front: 1 or 0. diffusers calls it `downsample_padding`.
    """

    def __init__(self, channels: int, before: int) -> None:
        super().__init__(channels, channels, 3, stride=2)
        self._before = before
        self._conv = cpu_strided_conv if hardware.detect().kind == "cpu" else strided_conv

    def __call__(self, x: mx.array) -> mx.array:
        x = _pad(x, self._before, 2 - self._before)
        return self._conv(x, self.weight) + self.bias


class DoublingConv(nn.Conv2d):
    """Each pixel as a 2x2 patch, then a 3x3 convolution.  x: (B, H, W, C) -> (B, 2H, 2W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self._conv = phased_doubling_conv if hardware.detect().kind == "cpu" else doubling_conv

    def __call__(self, x: mx.array) -> mx.array:
        return self._conv(x, self.weight) + self.bias


def strided_conv(x: mx.array, weight: mx.array) -> mx.array:
    """A 3x3 convolution of stride 2 over a padded image whose last row and column it does not reach.

    y[i] = sum_k w[k] x[2i + k],  k = 0..2.  x: (B, 2H + 2, 2W + 2, C); weight: (O, 3, 3, C) -> (B, H, W, O).
    """
    return mx.conv2d(x, weight, stride=2)


def rearranged_conv(x: mx.array, weight: mx.array) -> mx.array:
    """The same values as `strided_conv`, from a 2x2 convolution of stride 1 over 2x2 patches.

    With a fourth row and column of zeros the kernel covers two patches each way, so that patches become channels:
    y[i] = sum_k w[k] x[2i + k],  k = 0..3,  is  y[i] = sum_j sum_r w[2j + r] patch[i + j][r],  j, r = 0..1.
    It multiplies 16/9 as much and leaves no stride for the backward pass.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)
    kernel = mx.pad(weight, [(0, 0), (0, 1), (0, 1), (0, 0)]).reshape(-1, 2, 2, 2, 2, channels)
    return mx.conv2d(x, kernel.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2, 2, 4 * channels))


@with_gradient(lambda primals, cotangent, _: tuple(mx.vjp(rearranged_conv, list(primals), [cotangent])[1]))
def cpu_strided_conv(x: mx.array, weight: mx.array) -> mx.array:
    """`strided_conv` forwards, with the gradients of `rearranged_conv`."""
    return strided_conv(x, weight)


def doubling_conv(x: mx.array, weight: mx.array) -> mx.array:
    """A 3x3 convolution, zeros around, of the image with every pixel doubled each way.

    x: (B, H, W, C); weight: (O, 3, 3, C) -> (B, 2H, 2W, O).
    """
    return mx.conv2d(double(x), weight, padding=1)


def phased_doubling_conv(x: mx.array, weight: mx.array) -> mx.array:
    """The same values as `doubling_conv`, from four 2x2 convolutions of the image as it is.

    Doubled pixels repeat, so taps that see the same pixel add up. Along one axis, x[-1] = x[H] = 0:
    y[2i] = w[0] x[i - 1] + (w[1] + w[2]) x[i],  y[2i + 1] = (w[0] + w[1]) x[i] + w[2] x[i + 1].
    It multiplies 4/9 as much.
    """
    batch, height, width, _ = x.shape
    x = _pad(x, 1, 1)

    def phase(a: int, b: int) -> mx.array:
        """y at rows 2i + a and columns 2j + b: (B, H, W, O)."""
        kernel = _merge_taps(_merge_taps(weight, a, axis=1), b, axis=2)
        return mx.conv2d(x[:, a : a + height + 1, b : b + width + 1], kernel)

    y = mx.stack([mx.stack([phase(a, b) for b in range(2)], axis=3) for a in range(2)], axis=2)
    return y.reshape(batch, 2 * height, 2 * width, -1)


def _merge_taps(weight: mx.array, odd: int, axis: int) -> mx.array:
    """Three taps along an axis as the two that a doubled row is seen through."""
    first, middle, last = mx.split(weight, 3, axis=axis)
    return mx.concatenate([first + middle, last] if odd else [first, middle + last], axis=axis)


def double(x: mx.array) -> mx.array:
    """Each pixel as a 2x2 patch: (B, H, W, C) -> (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def halve(x: mx.array) -> mx.array:
    """The mean of each 2x2 patch: (B, H, W, C) -> (B, H/2, W/2, C)."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _pad(x: mx.array, before: int, behind: int) -> mx.array:
    """Zeros around the rows and columns of (B, H, W, C)."""
    return mx.pad(x, [(0, 0), (before, behind), (before, behind), (0, 0)])
