"""A teacher as students see it: one velocity, guidance already in it."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks.diffusion.guidance import classifier_free

Velocity = Callable[[mx.array, mx.array, mx.array | None], mx.array]
"""(x (B, H, W, C), t (B,) float timesteps, labels (B,) or None) -> v (B, H, W, C)."""


def guided_velocity(model: nn.Module, guidance_scale: float = 1.0, null_label: int | None = None) -> Velocity:
    """The model's v with classifier-free guidance, both branches in one batch; the plain v where the scale is 1.

    A student of it needs one evaluation where the teacher needs two.
    Raises: ValueError for guidance without an empty label, or without labels when it is called.
    Source: Meng et al. 2023 (on distillation of guided diffusion models), section 3.1, at one fixed scale.
    """
    if guidance_scale == 1.0:
        return lambda x, t, labels: model(x, t, labels)
    if null_label is None:
        raise ValueError(
            f"guidance_scale {guidance_scale} needs null_label: give it, or use 1.0 for an unguided teacher"
        )

    def velocity(x: mx.array, t: mx.array, labels: mx.array | None) -> mx.array:
        if labels is None:
            raise ValueError(f"guidance_scale {guidance_scale} needs labels, got None: use 1.0 for data without labels")
        empty = mx.full(labels.shape, null_label, dtype=labels.dtype)
        both = model(mx.concatenate([x, x]), mx.concatenate([t, t]), mx.concatenate([labels, empty]))
        return classifier_free(both[len(x) :], both[: len(x)], guidance_scale)

    return velocity
