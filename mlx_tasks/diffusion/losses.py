"""Training losses on v predictions."""

from __future__ import annotations

import mlx.core as mx


def min_snr_weight(alpha: mx.array, std: mx.array, gamma: float) -> mx.array:
    """Weight of each image's v loss.

    min(snr, gamma) / (snr + 1),  snr = alpha^2 / std^2;  with alpha^2 + std^2 = 1 this is min(alpha^2, gamma * std^2),
    which needs no division.
    alpha, std: (B,).  Returns: (B,), in (0, gamma / (gamma + 1)].
    Source: Hang et al. 2023, Section 3.4 (their weight of the x0 loss is min(snr, gamma), of the v loss this).
    """
    return mx.minimum(alpha**2, gamma * std**2)


def weighted_mse(prediction: mx.array, target: mx.array, weight: mx.array | None = None) -> mx.array:
    """Mean over images of weight * mean squared error.  prediction, target: (B, ...); weight: (B,) or None for 1."""
    error = mx.mean((prediction - target) ** 2, axis=tuple(range(1, prediction.ndim)))
    return mx.mean(error if weight is None else weight * error)
