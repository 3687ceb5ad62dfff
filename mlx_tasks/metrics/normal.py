"""Normal numbers that are the same on every platform and numpy release."""

from __future__ import annotations

import math

import numpy as np


def normal(shape: tuple[int, ...], seed: int, stream: int) -> np.ndarray:
    """Standard normal numbers of a shape, float64, by Box-Muller over Philox's raw words.

    numpy guarantees a bit generator's words for ever, and a Generator's normals not (NEP 19).
    """
    count = math.prod(shape)
    words = np.random.Philox(key=[seed, stream]).random_raw(2 * count)
    u = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return (np.sqrt(-2 * np.log(u[:count])) * np.cos(2 * np.pi * u[count:])).reshape(shape)
