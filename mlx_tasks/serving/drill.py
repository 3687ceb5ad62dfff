"""Damage on purpose, for drills: what serves gets worse while its files stay whole, as failing memory would make it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_tasks.errors import DataError

if TYPE_CHECKING:
    from mlx_tasks.serving.engine import Engine

Drill = Callable[["Engine"], None]


def parse_drill(text: str) -> Drill:
    """`noise:AMOUNT`: every weight gets normal noise of AMOUNT of its array's standard deviation.

    Raises: DataError for another text.
    """
    kind, _, amount = text.partition(":")
    try:
        share = float(amount)
    except ValueError:
        share = -1.0
    if kind != "noise" or not 0 < share < 100:
        raise DataError(f"--drill is written noise:AMOUNT, a number above 0, got {text!r}")
    return lambda engine: _noise(engine, share)


def _noise(engine: Engine, share: float) -> None:
    key, changed = mx.random.key(0), []
    flat = tree_flatten(engine.bundle.model.parameters())
    assert isinstance(flat, list)
    for name, value in flat:
        key, own = mx.random.split(key)
        changed.append((name, value + share * mx.std(value) * mx.random.normal(value.shape, key=own)))
    engine.bundle.model.update(tree_unflatten(changed))
    mx.eval(engine.bundle.model.parameters())
