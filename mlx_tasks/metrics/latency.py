"""How long a sampler takes, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Seconds of repeated runs.

    Attributes:
        median_ms: median time an image (milliseconds).
        low_ms: fastest repeat an image.
        high_ms: slowest repeat an image.
        repeats: how many there were after the warm-up.
        batch: images of one run.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    batch: int


def measure_latency(run: Callable[[], object], batch: int, repeats: int = 3) -> Latency:
    """Time an image of `run`, which draws `batch` images and evaluates them; one run first is not counted.

    Raises: ValueError for fewer than one repeat or image.
    """
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats and batch must be at least 1, got {repeats} and {batch}")
    run()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started) * 1000 / batch)
    return Latency(statistics.median(taken), min(taken), max(taken), repeats, batch)
