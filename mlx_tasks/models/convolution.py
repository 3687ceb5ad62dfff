"""Convolutions in the form that is fast where they run; parameters and values are the same everywhere.

MLX's CPU unfolds the image (every pixel nine times for a 3x3 kernel) before its matrix product, which leaves the cache
early, and its backward pass of a strided convolution is far slower than the forward one. So on a CPU a convolution is
a sum of one matrix product a tap over shifted views of the flattened image, and a strided one is first rearranged into
one of stride 1. benchmarks/cpu_kernels.py prints what each gains.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks import hardware

# Below these the unfolded form is as fast: few channels make thin products, small images are mostly border.
_LEAST_CHANNELS = 8
_LEAST_SIDE = 8


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the image's size.  x: (B, H, W, I) -> (B, H, W, O)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self._by_taps = hardware.detect().kind == "cpu" and in_channels >= _LEAST_CHANNELS

    def __call__(self, x: mx.array) -> mx.array:
        if self._by_taps and min(x.shape[1:3]) >= _LEAST_SIDE:
            return tap_conv(_pad(x, 1, 1), self.weight) + self.bias
        return super().__call__(x)


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
        self._conv = rearranged_conv if hardware.detect().kind == "cpu" else strided_conv

    def __call__(self, x: mx.array) -> mx.array:
        return self._conv(x, self.weight, self._before) + self.bias


def strided_conv(x: mx.array, weight: mx.array, before: int) -> mx.array:
    """A 3x3 convolution of stride 2 over `before` rows of zeros in front and 1 behind, and so for columns.

    On even sides that is torch's padding of 1 for `before` 1, whose last row behind is never read, and for `before` 0
    the padding that diffusers adds by hand.
    x: (B, H, W, C), H and W even; weight: (O, 3, 3, C) -> (B, H/2, W/2, O).
    """
    return mx.conv2d(_pad(x, before, 1 - before), weight, stride=2)


def rearranged_conv(x: mx.array, weight: mx.array, before: int) -> mx.array:
    """The same values as `strided_conv`, from a 2x2 convolution of stride 1 over 2x2 patches.

    With a fourth row and column of zeros the kernel covers two patches each way, so that patches become channels:
    y[i] = sum_k w[k] x[2i + k],  k = 0..3,  is  y[i] = sum_j sum_r w[2j + r] patch[i + j][r],  j, r = 0..1.
    It multiplies 16/9 as much and leaves no stride for the backward pass.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // 2 + 1, width // 2 + 1
    x = _pad(x, before, 2 - before).reshape(batch, rows, 2, columns, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, 4 * channels)
    kernel = mx.pad(weight, [(0, 0), (0, 1), (0, 1), (0, 0)]).reshape(-1, 2, 2, 2, 2, channels)
    return tap_conv(x, kernel.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2, 2, 4 * channels))


@mx.custom_function
def tap_conv(x: mx.array, weight: mx.array) -> mx.array:
    """A convolution of stride 1 without padding, as one matrix product a tap.

    In the image flattened to (B * H * W, C), the pixel under a tap lies a fixed number of rows further on, so each
    product reads a contiguous view and nothing is copied. Windows that reach over an image's edge are computed and
    left out of the result.
    x: (B, H, W, C); weight: (O, h, w, C) -> (B, H - h + 1, W - w + 1, O).
    """
    batch, height, width, channels = x.shape
    out_channels, h, w, _ = weight.shape
    flat, count = x.reshape(-1, channels), batch * height * width - (h - 1) * width - (w - 1)
    y = None
    for i in range(h):
        for j in range(w):
            view = flat[i * width + j :][:count]
            tap = weight[:, i, j].T
            y = view @ tap if y is None else mx.addmm(y, view, tap)
    shape = (batch, height - h + 1, width - w + 1, out_channels)
    strides = (height * width * out_channels, width * out_channels, out_channels, 1)
    return mx.as_strided(y, shape, strides)


@tap_conv.vjp
def _tap_conv_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, mx.array]:
    """d/dx is the full convolution with the kernel turned round; d/dweight a product a tap over the same views."""
    x, weight = primals
    batch, height, width, channels = x.shape
    out_channels, h, w, _ = weight.shape
    padded = mx.pad(cotangent, [(0, 0), (h - 1, h - 1), (w - 1, w - 1), (0, 0)])
    dx = tap_conv(padded, weight[:, ::-1, ::-1].transpose(3, 1, 2, 0))

    # The zeros behind the cotangent's rows cancel the windows that reach over an edge.
    flat, count = x.reshape(-1, channels), batch * height * width - (h - 1) * width - (w - 1)
    rows = mx.pad(cotangent, [(0, 0), (0, h - 1), (0, w - 1), (0, 0)]).reshape(-1, out_channels)[:count].T
    taps = [[rows @ flat[i * width + j :][:count] for j in range(w)] for i in range(h)]
    dweight = mx.stack([mx.stack(row, axis=1) for row in taps], axis=1)
    return dx, dweight


def _pad(x: mx.array, before: int, behind: int) -> mx.array:
    """Zeros around the rows and columns of (B, H, W, C)."""
    return mx.pad(x, [(0, 0), (before, behind), (before, behind), (0, 0)])
