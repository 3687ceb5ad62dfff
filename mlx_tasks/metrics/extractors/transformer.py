"""The pre-norm transformer layer that CLIP's towers and DINOv2 share, over a flat table of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json

Weights = Mapping[str, mx.array]


def quick_gelu(x: mx.array) -> mx.array:
    """x sigmoid(1.702 x), as OpenAI's CLIP."""
    return x * mx.sigmoid(1.702 * x)


def gelu(x: mx.array) -> mx.array:
    """x Phi(x), exact."""
    return x * 0.5 * (1.0 + mx.erf(x / math.sqrt(2.0)))


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


def linear(weights: Weights, name: str, x: mx.array) -> mx.array:
    """x W^T + b; a layer without a bias has none in the table."""
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def layer_norm(weights: Weights, name: str, x: mx.array, epsilon: float) -> mx.array:
    """Layer normalisation over the last axis."""
    return mx.fast.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)


def attention(
    weights: Weights, name: str, x: mx.array, heads: int, causal: bool, projections: tuple[str, str, str, str]
) -> mx.array:
    """Multi-head self-attention of x (B, L, C); projections name the query, key, value and output layers."""
    b, length, width = x.shape
    query, key, value = (
        linear(weights, f"{name}.{part}", x).reshape(b, length, heads, width // heads).transpose(0, 2, 1, 3)
        for part in projections[:3]
    )
    scale = (width // heads) ** -0.5
    mixed = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask="causal" if causal else None)
    return linear(weights, f"{name}.{projections[3]}", mixed.transpose(0, 2, 1, 3).reshape(b, length, width))


def as_arrays(weights: Mapping[str, np.ndarray], kernels: tuple[str, ...] = ()) -> dict[str, mx.array]:
    """MLX arrays, evaluated; names that end in one of `kernels` are convolutions and go from OIHW to OHWI."""
    arrays = {
        name: mx.array(np.ascontiguousarray(value.transpose(0, 2, 3, 1)) if name.endswith(kernels or "\0") else value)
        for name, value in weights.items()
    }
    mx.eval(arrays)
    return arrays


def read_config(folder: Path) -> dict[str, Any]:
    """config.json beside the weights.  Raises: DataError where it is missing or no mapping."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'} cannot be read ({error}): it belongs beside the weights") from None
    if not isinstance(config, dict):
        raise DataError(f"{folder / 'config.json'} must hold a mapping, got {type(config).__name__}")
    return config


def take(
    config: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The keys of `defaults` from a config.  Raises: DataError for a key that is fixed here and has another value."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise DataError(f"{where}.{key}={config[key]!r:.80} is not supported: only {value!r} is")
    values = {key: config.get(key, default) for key, default in defaults.items()}
    activation = values.get("hidden_act")
    if activation is not None and activation not in ACTIVATIONS:
        raise DataError(f"{where}.hidden_act={activation!r} is not supported: use one of {', '.join(ACTIVATIONS)}")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise DataError(f"{where}.hidden_size {width} must be a multiple of num_attention_heads {heads}")
    return values
