"""A network's first weights, drawn from one key instead of MLX's global random state."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_tasks.models.embeddings import GaussianFourierProjection


def draw_weights(model: nn.Module, key: mx.array) -> None:
    """Give every parameter of `model` a new value, lazily, from `key` and the parameter's place.

    Kernels and matrices: uniform in +-1/sqrt(fan_in), as torch draws them; biases 0; norms 1 and 0; embeddings unit
    normal; Fourier frequencies normal times 16.
    """
    embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    frequencies = {name for name, module in model.named_modules() if isinstance(module, GaussianFourierProjection)}
    names = [name for name, _ in tree_flatten(model.parameters())]
    values = dict(tree_flatten(model.parameters()))
    drawn = []
    for name, part in zip(names, mx.random.split(key, len(names)), strict=True):
        shape, owner = values[name].shape, name.rpartition(".")[0]
        if owner in embeddings:
            value = mx.random.normal(shape, key=part)
        elif owner in frequencies:
            value = 16 * mx.random.normal(shape, key=part)
        elif len(shape) == 1:
            value = (mx.ones if name.endswith("weight") else mx.zeros)(shape)
        else:
            fan_in = values[name].size // shape[0]
            value = mx.random.uniform(-(fan_in**-0.5), fan_in**-0.5, shape, key=part)
        drawn.append((name, value))
    model.update(tree_unflatten(drawn))
