"""Averaged weights: an exponential moving average whose decay warms up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


def ema_decay(updates: int, highest: float) -> float:
    """Decay after `updates` updates: min(highest, (1 + updates) / (10 + updates)).

    A short history is averaged over about a tenth of itself, so that early weights do not linger.
    Source: the `num_updates` rule of TensorFlow's ExponentialMovingAverage.
    """
    return min(highest, (1 + updates) / (10 + updates))


def flat_arrays(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree (a model's weights, an optimiser's state) by their dotted names."""
    return cast(dict[str, mx.array], dict(tree_flatten(tree)))


class Ema:
    """The running average of a model's trainable weights:  average <- decay * average + (1 - decay) * weights.

    Attributes:
        average: name -> array, in the model's own flat names.
    """

    def __init__(self, model: nn.Module) -> None:
        self.average = flat_arrays(model.trainable_parameters())

    def update(self, model: nn.Module, decay: float | mx.array) -> None:
        """Take the model's present weights into the average. Lazy: the caller evaluates."""
        for name, weight in flat_arrays(model.trainable_parameters()).items():
            self.average[name] = decay * self.average[name] + (1 - decay) * weight

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with averaged weights inside the block, and with its own again after it."""
        own = model.trainable_parameters()
        model.update(tree_unflatten(list(self.average.items())))
        try:
            yield model
        finally:
            model.update(own)
