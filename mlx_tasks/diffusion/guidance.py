"""Classifier-free guidance (Ho & Salimans 2022): labels dropped in training, two branches combined in sampling."""

from __future__ import annotations

import mlx.core as mx


def classifier_free(unconditional: mx.array, conditional: mx.array, scale: float) -> mx.array:
    """unconditional + scale * (conditional - unconditional).

    The same number for predictions of eps, x0 or v, since at one x each is affine in the others. scale 0 is the
    unconditional branch, 1 the conditional one (their w is scale - 1).
    """
    return unconditional + scale * (conditional - unconditional)


def drop_labels(labels: mx.array, null_label: int, probability: float, key: mx.array) -> mx.array:
    """labels (B,) with each replaced by `null_label` with the given chance, independently."""
    dropped = mx.random.bernoulli(probability, labels.shape, key=key)
    return mx.where(dropped, mx.array(null_label, dtype=labels.dtype), labels)
