"""The U-Net: diffusers' `UNet2DModel` in MLX, channels last."""

from __future__ import annotations

import itertools

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks.models.activations import ACTIVATIONS, silu
from mlx_tasks.models.blocks import DownBlock2D, UNetMidBlock2D, UpBlock2D
from mlx_tasks.models.embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from mlx_tasks.models.initial import draw_weights
from mlx_tasks.models.layers import GroupNorm
from mlx_tasks.models.resnet import ResnetBlock2D
from mlx_tasks.models.unet2d_config import UNet2DConfig

__all__ = ["UNet2DConfig", "UNet2DModel"]


class UNet2DModel(nn.Module):
    """A U-Net with resnets, self-attention, and an embedding of time (and class) that reaches every resnet.

    Parameter names are diffusers' own; convolution weights are (O, H, W, I) here and (O, I, H, W) on disk.
    The weights are drawn lazily from `key` (key 0 if None), so the same key gives the same network.

    Source: Ho et al. 2020, appendix B; diffusers 0.42, `UNet2DModel`.
    """

    def __init__(self, config: UNet2DConfig, key: mx.array | None = None) -> None:
        super().__init__()
        self.config = config
        widths, levels = config.block_out_channels, len(config.block_out_channels)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self._embed_time_and_class(config)

        skip_channels = [widths[0]]
        self.down_blocks = []
        for level, name in enumerate(config.down_block_types):
            last = level == levels - 1
            source = widths[max(level - 1, 0)]
            self.down_blocks.append(DownBlock2D(config, source, widths[level], "Attn" in name, not last))
            skip_channels += [widths[level]] * (config.layers_per_block + (not last))
        if config.mid_block_type is not None:
            self.mid_block = UNetMidBlock2D(config)
        self.up_blocks = []
        source = widths[-1]
        for level, name in zip(reversed(range(levels)), config.up_block_types, strict=True):
            taken = [skip_channels.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock2D(config, source, widths[level], taken, "Attn" in name, level > 0))
            source = widths[level]

        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self._resnet_count = sum(isinstance(module, ResnetBlock2D) for module in self.modules())
        draw_weights(self, mx.random.key(0) if key is None else key)

    def _embed_time_and_class(self, config: UNet2DConfig) -> None:
        channels = config.block_out_channels[0]
        if config.time_embedding_type == "fourier":
            self.time_proj = GaussianFourierProjection(channels)
            channels *= 2
        else:
            self.time_proj = Timesteps(channels, config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = TimestepEmbedding(channels, config.time_embed_dim)
        if config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(channels, config.time_embed_dim)
        elif config.class_embed_type is None and config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, config.time_embed_dim)

    def __call__(
        self, x: mx.array, t: mx.array, class_labels: mx.array | None = None, key: mx.array | None = None
    ) -> mx.array:
        """The network's prediction, (B, H, W, out_channels).

        Args:
            x: (B, H, W, in_channels); H and W multiples of `config.stride`.
            t: (B,) or scalar timesteps, 0 to num_train_timesteps - 1, whole or not.
            class_labels: (B,) indices; with class_embed_type `timestep` (B,) numbers, with `identity`
                (B, time_embed_dim) embeddings; None for a network without classes.
            key: switches dropout on.

        Raises: ValueError for a side that the levels cannot halve, or labels that are missing or not wanted.
        """
        batch, height, width, _ = x.shape
        stride = self.config.stride
        if height % stride or width % stride:
            raise ValueError(f"image sides must be multiples of {stride}, got {height} x {width}: resize or pad them")
        keys = itertools.repeat(None) if key is None else iter(mx.random.split(key, self._resnet_count))
        t = mx.broadcast_to(mx.array(t), (batch,))
        emb = self._embedding(t, class_labels)

        x = 2 * x - 1 if self.config.center_input_sample else x
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, level_skips = block(x, emb, keys)
            skips += level_skips
        if self.config.mid_block_type is not None:
            x = self.mid_block(x, emb, keys)
        for block in self.up_blocks:
            x = block(x, skips, emb, keys)
        # SiLU whatever act_fn is, as in diffusers.
        x = self.conv_out(silu(self.conv_norm_out(x)))
        if self.config.time_embedding_type == "fourier":
            x = x / t.reshape(batch, 1, 1, 1).astype(x.dtype)
        return x

    def _embedding(self, t: mx.array, class_labels: mx.array | None) -> mx.array:
        """Time and class, (B, time_embed_dim), after the activation that every resnet would apply first."""
        config = self.config
        dtype = self.conv_in.weight.dtype
        emb = self.time_embedding(self.time_proj(t).astype(dtype))
        conditional = config.class_embed_type is not None or config.num_class_embeds is not None
        if conditional != (class_labels is not None):
            needs = "needs class_labels" if conditional else "takes no class_labels"
            raise ValueError(f"this network {needs}: num_class_embeds is {config.num_class_embeds}")
        if class_labels is not None:
            if config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).astype(dtype)
            identity = config.class_embed_type == "identity"
            emb = emb + (class_labels.astype(dtype) if identity else self.class_embedding(class_labels))
        return ACTIVATIONS[config.act_fn.lower()](emb)
