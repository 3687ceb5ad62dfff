"""What one optimiser step looks at: images, noise, timesteps and labels, all drawn from the step's own key."""

from __future__ import annotations

import mlx.core as mx

from mlx_tasks.data.loader import ImageSet, batch_indices, to_float
from mlx_tasks.training.keys import named_key
from mlx_tasks.training.learner import Batch


def stratified(key: mx.array, count: int, levels: int) -> mx.array:
    """(count,) whole numbers in [0, levels), each uniform, together spread evenly over the range.

    index_i = floor(levels * frac(u + i / count)),  one u ~ U[0, 1) for the batch: the loss of a batch then varies less.
    Source: Kingma et al. 2021 (variational diffusion models), section I.1.
    """
    offset = mx.random.uniform(key=key)
    place = (offset + mx.arange(count) / count) % 1.0
    return mx.minimum(mx.floor(levels * place), levels - 1).astype(mx.int32)


def draw_batch(data: ImageSet, batch_size: int, levels: int, seed: int, name: str, step: int) -> Batch:
    """The batch of step `step` (from 0) of the training called `name`: equal arguments, equal batch.

    Returns: x0 (B, R, R, C) in [-1, 1]; eps (B, R, R, C) unit normal; level (B,) int32 in [0, levels);
        labels (B,) int32 if the data has classes.
    """
    indices = batch_indices(len(data), batch_size, seed, step)
    return noised_batch(data, indices, levels, named_key(seed, name, step))


def noised_batch(data: ImageSet, indices, levels: int, key: mx.array) -> Batch:
    """The batch of given images, with noise and levels from `key`; fields as in `draw_batch`."""
    noise_key, level_key = mx.random.split(key)
    x0 = mx.array(to_float(data.images[indices]))
    batch = {
        "x0": x0,
        "eps": mx.random.normal(x0.shape, key=noise_key),
        "level": stratified(level_key, len(indices), levels),
    }
    if data.class_names:
        batch["labels"] = mx.array(data.labels[indices])
    return batch
