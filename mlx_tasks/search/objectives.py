"""What a trial is judged by: how far the student is from its teacher, how long it takes, how much memory it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_tasks.data.loader import ImageSet
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.distillation.output import output_loss
from mlx_tasks.distillation.teacher import Velocity
from mlx_tasks.training.batches import noised_batch
from mlx_tasks.training.keys import named_key

VALIDATION_DRAWS = 512
"""Images the error is taken over, each with noise and a timestep of its own; few images are used several times."""
_WARMUP, _REPEATS = 3, 15


@dataclass(frozen=True)
class Cost:
    """What one network evaluation of a batch costs on this machine.

    Attributes:
        latency_ms: median over the repeats (ms).
        latency_low_ms, latency_high_ms: quartiles of the repeats (ms).
        peak_memory_mb: most memory the arrays held, the weights included (MiB).
        parameters: numbers in the weights.
        repeats: timed repeats.
        batch: images of the batch.
    """

    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    peak_memory_mb: float
    parameters: int
    repeats: int
    batch: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def distillation_error(
    student: nn.Module, teacher: Velocity, schedule: NoiseSchedule, data: ImageSet, seed: int, batch_size: int = 64
) -> float:
    """Root mean square of (student's v - teacher's v) on the images of `data`, over noise and timesteps.

    The same images, noise and timesteps for every student of a seed, so that two students are compared on equal terms.
    Raises: ValueError for a split without images.
    """
    if not len(data):
        raise ValueError("the validation split is empty: raise data.validation_fraction")
    loss = output_loss(teacher, schedule)
    total = 0.0
    for start in range(0, VALIDATION_DRAWS, batch_size):
        count = min(batch_size, VALIDATION_DRAWS - start)
        indices = np.arange(start, start + count) % len(data)
        batch = noised_batch(data, indices, schedule.num_train_timesteps, named_key(seed, "search-error", start))
        total += loss(student, batch).item() * count
    return float(np.sqrt(total / VALIDATION_DRAWS))


def measure_cost(
    velocity: Velocity,
    model: nn.Module,
    shape: tuple[int, int, int, int],
    labels: mx.array | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Latency and memory of one call of `velocity` on a batch of `shape` (B, H, W, C), by measuring.

    velocity: what is called, for example the model itself, or a teacher with both guidance branches.
    model: the network behind it, whose weights count as its own; other arrays alive in the process do not count.
    labels: (B,) or None.
    """
    x = mx.random.normal(shape, key=mx.random.key(0))
    t = mx.full((shape[0],), 500.0)
    mx.eval(x, t, model.parameters(), labels if labels is not None else [])
    mx.clear_cache()
    weights = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(_WARMUP):
        mx.eval(velocity(x, t, labels))
    peak = mx.get_peak_memory() - before + weights
    seconds = []
    for _ in range(_REPEATS):
        start = clock()
        mx.eval(velocity(x, t, labels))
        seconds.append(clock() - start)
    low, median, high = (float(q) * 1e3 for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
    count = sum(value.size for _, value in tree_flatten(model.parameters()))
    return Cost(median, low, high, peak / 2**20, count, _REPEATS, shape[0])
