"""The residual block that a U-Net's levels are made of."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks.models.activations import ACTIVATIONS
from mlx_tasks.models.convolution import Conv1x1, double, halve
from mlx_tasks.models.layers import GroupNorm, RowLinear
from mlx_tasks.models.unet2d_config import UNet2DConfig


class ResnetBlock2D(nn.Module):
    """(shortcut(x) + conv2(act(norm2(conv1(act(norm1(x))) with time)))) / output_scale.

    Time enters by a shift before norm2 (`default`) or by a scale and a shift after it (`scale_shift`).

    Args:
        config: activation, norm, dropout and how time enters.
        in_channels, out_channels: of the image.
        resize: `down` averages 2x2 patches, `up` doubles them, both after the first activation.
        output_scale: what the sum is divided by.
    """

    def __init__(
        self,
        config: UNet2DConfig,
        in_channels: int,
        out_channels: int,
        resize: Literal["down", "up"] | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self._activation = ACTIVATIONS[config.act_fn.lower()]
        self._scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self._resize = {"down": halve, "up": double}[resize] if resize else None
        self._output_scale = output_scale
        self._dropout = config.dropout
        self.norm1 = GroupNorm(config.norm_num_groups, in_channels, config.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = RowLinear(config.time_embed_dim, out_channels * (2 if self._scale_shift else 1))
        self.norm2 = GroupNorm(config.norm_num_groups, out_channels, config.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = Conv1x1(in_channels, out_channels)

    def __call__(self, x: mx.array, emb: mx.array, key: mx.array | None = None) -> mx.array:
        """x: (B, H, W, in_channels), emb: (B, time_embed_dim) after its activation -> (B, H', W', out_channels).

        Dropout is on only where a key is given.
        """
        h = self._activation(self.norm1(x))
        if self._resize is not None:
            x, h = self._resize(x), self._resize(h)
        h = self.conv1(h)
        time = self.time_emb_proj(emb)[:, None, None, :]
        if self._scale_shift:
            scale, shift = mx.split(time, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self._activation(h)
        if key is not None and self._dropout:
            kept = mx.random.bernoulli(1 - self._dropout, h.shape, key)
            h = mx.where(kept, h / (1 - self._dropout), 0)
        h = self.conv2(h)
        if "conv_shortcut" in self:
            x = self.conv_shortcut(x)
        h = x + h
        return h if self._output_scale == 1 else h / self._output_scale
