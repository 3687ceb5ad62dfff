"""Layers whose fastest form depends on the device: normalisation, convolution, halving and doubling of an image."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks import hardware


class GroupNorm(nn.GroupNorm):
    """Torch's GroupNorm on (B, ..., C)."""

    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__(groups, channels, eps=eps, pytorch_compatible=True)


class Conv1x1(nn.Module):
    """A 1x1 convolution as the matrix product it is. Parameters as `nn.Conv2d`'s: weight (O, 1, 1, I), bias (O,)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        scale = in_channels**-0.5
        self.weight = mx.random.uniform(-scale, scale, (out_channels, 1, 1, in_channels))
        self.bias = mx.zeros((out_channels,))

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, H, W, I) -> (B, H, W, O)."""
        out_channels, _, _, in_channels = self.weight.shape
        return mx.addmm(self.bias, x, self.weight.reshape(out_channels, in_channels).T)


def strided_conv(x: mx.array, weight: mx.array, padding: int) -> mx.array:
    """A 3x3 convolution of stride 2.

    Zeros: `padding` rows above, 1 below (and so for columns), which on even sides is what torch's symmetric padding of
    1 reads, and what diffusers pads by hand for a padding of 0.
    x: (B, H, W, C), H and W even; weight: (O, 3, 3, C) -> (B, H/2, W/2, O).
    """
    if padding == 0:
        x = mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
    return mx.conv2d(x, weight, stride=2, padding=padding)


def rearranged_conv(x: mx.array, weight: mx.array, padding: int) -> mx.array:
    """The same values as `strided_conv`, from a 2x2 convolution of stride 1 over 2x2 patches.

    With a fourth row and column of zeros the kernel covers two patches each way, so that patches become channels:
    y[i] = sum_k w[k] x[2i + k],  k = 0..3,  is  y[i] = sum_j sum_r w[2j + r] patch[i + j][r],  j, r = 0..1.
    It multiplies 16/9 as much and avoids the backward pass of a strided convolution, which is slow on MLX's CPU.
    """
    batch, height, width, channels = x.shape
    out_channels = weight.shape[0]
    rows, columns = height // 2 + 1, width // 2 + 1
    sides = (padding, 2 - padding)
    x = mx.pad(x, [(0, 0), sides, sides, (0, 0)]).reshape(batch, rows, 2, columns, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, 4 * channels)
    weight = mx.pad(weight, [(0, 0), (0, 1), (0, 1), (0, 0)]).reshape(out_channels, 2, 2, 2, 2, channels)
    weight = weight.transpose(0, 1, 3, 2, 4, 5).reshape(out_channels, 2, 2, 4 * channels)
    return mx.conv2d(x, weight)


class DownsampleConv(nn.Conv2d):
    """A learned halving of the image. The arithmetic is the device's choice, the parameters are the same."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__(channels, channels, 3)
        self._pad = padding
        self._conv = rearranged_conv if hardware.detect().kind == "cpu" else strided_conv

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, H, W, C) -> (B, H/2, W/2, C)."""
        return self._conv(x, self.weight, self._pad) + self.bias


class Downsample2D(nn.Module):
    """diffusers' name for a learned halving: the convolution sits one level down, as `conv`."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = DownsampleConv(channels, padding)

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, H, W, C) -> (B, H/2, W/2, C)."""
        return self.conv(x)


class Upsample2D(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, H, W, C) -> (B, 2H, 2W, C)."""
        return self.conv(double(x))


def double(x: mx.array) -> mx.array:
    """Each pixel as a 2x2 patch: (B, H, W, C) -> (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def halve(x: mx.array) -> mx.array:
    """The mean of each 2x2 patch: (B, H, W, C) -> (B, H/2, W/2, C)."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
