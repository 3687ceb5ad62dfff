"""Measuring, while a network trains, how much its loss varies at each noise level: what a learned schedule follows."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_tasks.data.loader import ImageSet, batch_indices
from mlx_tasks.diffusion.learned_schedule import BINS, LearnedSchedule, edges
from mlx_tasks.diffusion.losses import min_snr_weight
from mlx_tasks.diffusion.parameterization import per_image, v_from_x0_eps, x_from_x0_eps
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.training.batches import noised_batch, stratified
from mlx_tasks.training.keys import named_key
from mlx_tasks.training.learner import Batch

EVERY = 25
"""Optimiser steps between two measurements."""
MEMORY = 0.8
"""How much of a bin's moment is kept at each measurement."""
IMAGES = 64


def follow(batch: Batch, learned: LearnedSchedule) -> Batch:
    """The batch with what the loss must know of a schedule that changes: alpha, std and importance (B,)."""
    level = batch["level"]
    importance = mx.array(learned.importance.astype(np.float32))[level]
    return {
        **batch,
        "alpha": learned.schedule.alpha(level),
        "std": learned.schedule.std(level),
        "importance": importance,
    }


def measure(
    model: nn.Module,
    schedule: NoiseSchedule,
    reference: NoiseSchedule,
    data: ImageSet,
    null_label: int | None,
    gamma: float | None,
    moments: Sequence[float] | None,
    seed: int,
    step: int,
) -> list[float]:
    """The moments (BINS,) after one more look: IMAGES images at levels spread evenly over log sigma, forward only.

    schedule: what the network is told timesteps by; reference: the schedule whose weights count.  A function of its
    arguments alone, so a run that goes on from a checkpoint measures the same.
    """
    indices = batch_indices(len(data), min(IMAGES, len(data)), seed + 1, step)
    batch = noised_batch(data, indices, 1 << 20, named_key(seed, "schedule", step))
    count = len(indices)
    place = np.array(stratified(named_key(seed, "schedule-level", step), count, 1 << 20)) / float(1 << 20)
    bins = edges(reference)
    sigma = np.exp(bins[0] + place * (bins[-1] - bins[0]))
    alpha = mx.array((1.0 / np.sqrt(1.0 + sigma**2)).astype(np.float32))
    std = mx.array((sigma / np.sqrt(1.0 + sigma**2)).astype(np.float32))
    alpha_b, std_b = per_image(alpha, batch["x0"]), per_image(std, batch["x0"])
    labels = batch.get("labels")
    if labels is not None and null_label is not None:
        labels = mx.where(labels < 0, null_label, labels)
    x = x_from_x0_eps(batch["x0"], batch["eps"], alpha_b, std_b)
    told = mx.array(np.asarray(schedule.t_from_sigma(sigma), dtype=np.float32))
    gap = model(x, told, labels) - v_from_x0_eps(batch["x0"], batch["eps"], alpha_b, std_b)
    weight = 1.0 if gamma is None else min_snr_weight(alpha, std, gamma)
    loss = np.array(weight * mx.mean(gap**2, axis=tuple(range(1, gap.ndim))), dtype=np.float64)
    bin_of = np.minimum((place * BINS).astype(int), BINS - 1)
    sums, counts = np.bincount(bin_of, loss**2, BINS), np.bincount(bin_of, minlength=BINS)
    seen = counts > 0
    if moments is None:
        fresh = np.interp(np.arange(BINS), np.flatnonzero(seen), sums[seen] / counts[seen])
        return fresh.tolist()
    kept = np.asarray(moments, dtype=np.float64)
    kept[seen] = MEMORY * kept[seen] + (1.0 - MEMORY) * sums[seen] / counts[seen]
    return kept.tolist()
