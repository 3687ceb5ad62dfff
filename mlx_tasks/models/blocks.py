"""A U-Net's levels: going down, in the middle, going up. With and without attention they are one class each."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks.models.attention import Attention
from mlx_tasks.models.layers import Downsample2D, Upsample2D
from mlx_tasks.models.resnet import ResnetBlock2D
from mlx_tasks.models.unet2d_config import UNet2DConfig

Keys = Iterator[mx.array | None]


def _attentions(config: UNet2DConfig, channels: int, count: int) -> list[Attention]:
    head_dim = config.head_dim(channels)
    return [Attention(channels, head_dim, config.norm_num_groups, config.norm_eps) for _ in range(count)]


class DownBlock2D(nn.Module):
    """Resnets, each followed by attention if the level attends, then a halving unless the level is the last."""

    def __init__(
        self, config: UNet2DConfig, in_channels: int, out_channels: int, attends: bool, downsamples: bool
    ) -> None:
        super().__init__()
        count = config.layers_per_block
        widths = [in_channels] + [out_channels] * (count - 1)
        self.resnets = [ResnetBlock2D(config, width, out_channels) for width in widths]
        if attends:
            self.attentions = _attentions(config, out_channels, count)
        if downsamples:
            # In diffusers the resnet kind of halving exists only beside attention.
            if attends and config.downsample_type == "resnet":
                self.downsamplers = [ResnetBlock2D(config, out_channels, out_channels, resize="down")]
            else:
                self.downsamplers = [Downsample2D(out_channels, config.downsample_padding)]

    def __call__(self, x: mx.array, emb: mx.array, keys: Keys) -> tuple[mx.array, list[mx.array]]:
        """The level's output, and what each of its layers hands to the way up.  x: (B, H, W, in_channels)."""
        skips = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, emb, next(keys))
            if "attentions" in self:
                x = self.attentions[index](x)
            skips.append(x)
        for layer in self.downsamplers if "downsamplers" in self else ():
            x = layer(x, emb, next(keys)) if isinstance(layer, ResnetBlock2D) else layer(x)
            skips.append(x)
        return x, skips


class UNetMidBlock2D(nn.Module):
    """A resnet, attention unless it is switched off, a resnet."""

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__()
        channels, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        self.resnets = [ResnetBlock2D(config, channels, channels, output_scale=scale) for _ in range(2)]
        if config.add_attention:
            head_dim, groups = config.head_dim(channels), config.mid_attention_groups
            self.attentions = [Attention(channels, head_dim, groups, config.norm_eps, output_scale=scale)]

    def __call__(self, x: mx.array, emb: mx.array, keys: Keys) -> mx.array:
        """x: (B, H, W, C) -> (B, H, W, C)."""
        x = self.resnets[0](x, emb, next(keys))
        if "attentions" in self:
            x = self.attentions[0](x)
        return self.resnets[1](x, emb, next(keys))


class UpBlock2D(nn.Module):
    """Resnets over the image beside a skip each, attention after each if the level attends, then a doubling.

    Args:
        skip_channels: of each skip, in the order in which they are used.
    """

    def __init__(
        self,
        config: UNet2DConfig,
        in_channels: int,
        out_channels: int,
        skip_channels: list[int],
        attends: bool,
        upsamples: bool,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = [
            ResnetBlock2D(config, width + skip, out_channels) for width, skip in zip(widths, skip_channels, strict=True)
        ]
        if attends:
            self.attentions = _attentions(config, out_channels, len(skip_channels))
        if upsamples:
            if attends and config.upsample_type == "resnet":
                self.upsamplers = [ResnetBlock2D(config, out_channels, out_channels, resize="up")]
            else:
                self.upsamplers = [Upsample2D(out_channels)]

    def __call__(self, x: mx.array, skips: list[mx.array], emb: mx.array, keys: Keys) -> mx.array:
        """x: (B, H, W, in_channels), skips: those of the way down, of which this block takes the last ones off."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(mx.concatenate([x, skips.pop()], axis=-1), emb, next(keys))
            if "attentions" in self:
                x = self.attentions[index](x)
        for layer in self.upsamplers if "upsamplers" in self else ():
            x = layer(x, emb, next(keys)) if isinstance(layer, ResnetBlock2D) else layer(x)
        return x
