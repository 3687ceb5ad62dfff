"""Embeddings of time, as diffusers' U-Nets compute them."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_tasks.models.activations import silu
from mlx_tasks.models.layers import RowLinear

MAX_PERIOD = 10_000


class Timesteps(nn.Module):
    """Sines and cosines of a timestep at geometrically falling frequencies; no weights.

    angle_i = t * MAX_PERIOD**(-i / (half - freq_shift)),  i = 0 .. half - 1,  half = channels // 2

    Source: Vaswani et al. 2017, section 3.5; Ho et al. 2020's code, which diffusers follows.
    """

    def __init__(self, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        half = channels // 2
        # float32 in the order diffusers computes it: at t near 1000 a rounding here is seen in the angle.
        exponent = np.float32(-math.log(MAX_PERIOD)) * np.arange(half, dtype=np.float32)
        self._frequencies = mx.array(np.exp(exponent / np.float32(half - freq_shift)))
        self._cosine_first = flip_sin_to_cos
        self._odd = channels % 2 == 1

    def __call__(self, t: mx.array) -> mx.array:
        """Embeddings (B, channels), float32.  t: (B,)."""
        angle = t.astype(mx.float32)[:, None] * self._frequencies
        parts = [mx.cos(angle), mx.sin(angle)] if self._cosine_first else [mx.sin(angle), mx.cos(angle)]
        if self._odd:
            parts.append(mx.zeros((t.shape[0], 1)))
        return mx.concatenate(parts, axis=-1)


class GaussianFourierProjection(nn.Module):
    """Sines and cosines of 2*pi*w*log(t) at random fixed frequencies w ~ N(0, scale**2).

    Source: Tancik et al. 2020; Song et al. 2021 (score SDE), whose noise level is diffusers' timestep here.
    """

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.weight = mx.random.normal((channels,)) * scale
        self.freeze()

    def __call__(self, t: mx.array) -> mx.array:
        """Embeddings (B, 2 * channels).  t: (B,), above 0."""
        angle = mx.log(t.astype(mx.float32))[:, None] * self.weight * (2 * math.pi)
        return mx.concatenate([mx.sin(angle), mx.cos(angle)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU between them, whatever the blocks' activation is."""

    def __init__(self, channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = RowLinear(channels, time_embed_dim)
        self.linear_2 = RowLinear(time_embed_dim, time_embed_dim)

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, channels) -> (B, time_embed_dim)."""
        return self.linear_2(silu(self.linear_1(x)))
