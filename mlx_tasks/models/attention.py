"""Self-attention over the positions of an image."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks import hardware
from mlx_tasks.models.elementary import softmax
from mlx_tasks.models.layers import GroupNorm


class Attention(nn.Module):
    """(x + attention(norm(x))) / output_scale with `channels // head_dim` heads, named as diffusers' `Attention`.

    Args:
        channels: of the image, C.
        head_dim: channels of one head; where it does not divide C the heads are fewer channels than C, as there.
        groups: of the norm; None for no norm.
        eps: of the norm.
        output_scale: what the sum is divided by.
    """

    def __init__(self, channels: int, head_dim: int, groups: int | None, eps: float, output_scale: float = 1.0) -> None:
        super().__init__()
        self._heads = channels // head_dim
        self._head_dim = head_dim
        self._output_scale = output_scale
        on_cpu = hardware.detect().kind == "cpu"
        self._attend = plain_attention if on_cpu else mx.fast.scaled_dot_product_attention
        inner = self._heads * head_dim
        if groups is not None:
            self.group_norm = GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = [nn.Linear(inner, channels)]

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        h = self.group_norm(x) if "group_norm" in self else x
        h = h.reshape(batch, height * width, channels)
        q, k, v = (self._split(layer(h)) for layer in (self.to_q, self.to_k, self.to_v))
        h = self._attend(q, k, v, scale=self._head_dim**-0.5)
        h = h.transpose(0, 2, 1, 3).reshape(batch, height * width, -1)
        h = x + self.to_out[0](h).reshape(x.shape)
        return h if self._output_scale == 1 else h / self._output_scale

    def _split(self, x: mx.array) -> mx.array:
        """(B, N, heads * head_dim) -> (B, heads, N, head_dim)."""
        batch, length, _ = x.shape
        return x.reshape(batch, length, self._heads, self._head_dim).transpose(0, 2, 1, 3)


def plain_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """softmax(scale * q k^T) v.  q, k, v: (B, heads, N, D) -> (B, heads, N, D)."""
    return softmax((scale * q) @ k.swapaxes(-1, -2)) @ v
