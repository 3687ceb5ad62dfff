"""The activations a diffusers config may name."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks import hardware
from mlx_tasks.models import elementary


def relu(x: mx.array) -> mx.array:
    """max(x, 0)."""
    return mx.maximum(x, 0)


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x)."""
    sigmoid = elementary.sigmoid if hardware.detect().kind == "cpu" else mx.sigmoid
    return x * sigmoid(x)


def gelu(x: mx.array) -> mx.array:
    """x * Phi(x), by erf as torch's default."""
    return nn.gelu(x)


def mish(x: mx.array) -> mx.array:
    """x * tanh(log(1 + exp(x)))."""
    return nn.mish(x)


ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": silu,
    "swish": silu,
    "relu": relu,
    "gelu": gelu,
    "mish": mish,
}
