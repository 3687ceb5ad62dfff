"""Where a sampler's noise comes from: the caller's key, one for the batch or one for each image."""

from __future__ import annotations

import mlx.core as mx


def normal(x: mx.array, key: mx.array | None) -> mx.array:
    """Unit normal noise of x's shape (B, H, W, C).

    key: (2,) for the whole batch, or (B, 2), one an image, whose noise then does not depend on the others.
    Raises: ValueError without a key: noise comes from the caller's alone.
    """
    if key is None:
        raise ValueError("a sampler that draws noise needs a key: give sample(..., key=mx.random.key(seed))")
    if key.ndim == 1:
        return mx.random.normal(x.shape, key=key)
    return mx.vmap(lambda one: mx.random.normal(x.shape[1:], key=one))(key)


def split(key: mx.array) -> tuple[mx.array, mx.array]:
    """(key to go on with, key to use now), for one key (2,) or one an image (B, 2)."""
    if key.ndim == 1:
        following, now = mx.random.split(key)
        return following, now
    both = mx.vmap(mx.random.split)(key)
    return both[:, 0], both[:, 1]
