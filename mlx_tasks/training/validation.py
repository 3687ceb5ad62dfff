"""The loss on images that no step trains on, with the same noise every time: its course is the model's alone."""

from __future__ import annotations

import mlx.nn as nn
import numpy as np

from mlx_tasks.data.loader import ImageSet
from mlx_tasks.training.batches import noised_batch
from mlx_tasks.training.keys import named_key
from mlx_tasks.training.learner import Loss


def validation_loss(
    model: nn.Module,
    loss: Loss,
    data: ImageSet,
    levels: int,
    seed: int,
    batch_size: int = 128,
    max_images: int = 512,
) -> float | None:
    """Mean loss over the first `max_images` images, each with fixed noise and level; None without images."""
    count = min(len(data), max_images)
    total = 0.0
    for start in range(0, count, batch_size):
        indices = np.arange(start, min(start + batch_size, count))
        batch = noised_batch(data, indices, levels, named_key(seed, "validation", start))
        total += len(indices) * float(loss(model, batch))
    return total / count if count else None
