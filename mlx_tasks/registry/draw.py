"""Images of a bundle as a caller asks for them: one (class, seed) pair each, as uint8 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlx_tasks.errors import DataError

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle


def draw(bundle: Bundle, class_labels: Sequence[int], seeds: Sequence[int], batch_size: int = 32) -> np.ndarray:
    """(N, H, W, C) uint8: image i is of class_labels[i] and comes from seeds[i] alone, whatever is drawn beside it.

    The same call gives the same bytes, and so does another batch around an image, unless the device's matrix products
    depend on their size (`serving.engine.exact_multiple` tells): then it moves by rounding, one grey level.
    Label -1 asks for any class. A bundle without classes takes -1 or 0.
    Raises: DataError naming the value for labels or seeds that are out of range.
    """
    import mlx.core as mx

    from mlx_tasks.data.loader import to_uint8
    from mlx_tasks.samplers.bundle_sampler import bundle_noise, sample_bundle

    names = len(bundle.sampler.class_names)
    if len(class_labels) != len(seeds):
        raise DataError(f"each image needs a label and a seed, got {len(class_labels)} and {len(seeds)}")
    for label in class_labels:
        if not -1 <= label < max(names, 1):
            raise DataError(f"class_label must lie in [-1, {max(names, 1) - 1}], -1 for any class, got {label}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise DataError(f"seed must lie in [0, 2**32), got {seed}")
    if not len(seeds):
        return np.zeros((0, bundle.sampler.resolution, bundle.sampler.resolution, bundle.sampler.channels), np.uint8)
    side, channels = bundle.sampler.resolution, bundle.sampler.channels
    images = np.zeros((len(seeds), side, side, channels), np.uint8)
    for known in (True, False):  # guidance needs a class, so images of any class are drawn apart
        rows = [i for i, label in enumerate(class_labels) if (label >= 0 and names > 0) == known]
        if not rows:
            continue
        noise = mx.concatenate([bundle_noise(bundle, int(seeds[i]), 1) for i in rows])
        labels = [int(class_labels[i]) for i in rows] if known else None
        drawn = sample_bundle(bundle, noise, labels, batch_size=batch_size).images
        images[rows] = to_uint8(np.array(drawn))
    return images
