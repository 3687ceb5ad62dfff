"""Batches of a size at which an image's bits do not depend on the rest of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

MULTIPLES = (1, 2, 4, 8, 16, 32)
"""Batch sizes are rounded up to the first of these that makes a row's bits independent of the rest."""


def padded(model: Any, x: mx.array, t: mx.array, labels: mx.array | None, multiple: int) -> mx.array:
    """The network's output for x (B, H, W, C), computed in a batch of a multiple of `multiple` rows."""
    missing = -len(x) % multiple
    if missing == 0:
        return model(x, t, labels)
    rows = mx.minimum(mx.arange(len(x) + missing), len(x) - 1)
    return model(x[rows], t[rows], None if labels is None else labels[rows])[: len(x)]


def exact_multiple(bundle: Bundle, most_rows: int) -> tuple[int, bool]:
    """(multiple, exact): the least multiple of rows with which an image's bits are the same in every batch.

    It is measured: matrix products take other paths at other sizes, and which depends on the device. Where no multiple
    does it, (1, False): images of one seed may then differ by rounding, at most one grey level.
    """
    sampler, model = bundle.sampler, bundle.model
    most = max(most_rows, MULTIPLES[2])
    generator = np.random.Generator(np.random.PCG64(0))
    shape = (most, sampler.resolution, sampler.resolution, sampler.channels)
    x = mx.array(generator.normal(size=shape).astype(np.float32))
    t = mx.array(generator.uniform(1, bundle.schedule.num_train_timesteps - 1, most).astype(np.float32))
    names = model.config.num_class_embeds
    labels = None if names is None else mx.array(np.arange(most) % names)
    sizes = [size for size in (1, 3, 5, most // 2 - 1, most - 1) if size > 0]
    for multiple in (m for m in MULTIPLES if m <= most):
        whole = np.array(padded(model, x, t, labels, multiple))
        if all(
            np.array_equal(
                np.array(padded(model, x[:n], t[:n], None if labels is None else labels[:n], multiple)), whole[:n]
            )
            for n in sizes
        ):
            return multiple, True
    return 1, False
