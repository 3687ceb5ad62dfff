"""Training of the image-text model, and how well it tells captions apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_tasks.errors import DivergedError
from mlx_tasks.metrics.estimate import Estimate, share
from mlx_tasks.metrics.image_text import ImageTextModel, contrastive_loss, images_array, texts_array, tokenize

PEAK_RATE = 2e-3


class ImageTextStep(NamedTuple):
    """One optimiser step."""

    step: int
    loss: float


@dataclass(frozen=True)
class Retrieval:
    """How often the model picks an image's own caption.

    Attributes:
        accuracy: share of right picks.
        choices: captions to pick from, the right one included.
        chance: what guessing reaches.
    """

    accuracy: Estimate
    choices: int
    chance: float


def train_image_text(
    model: ImageTextModel, images: np.ndarray, captions: list[str], steps: int, batch_size: int, seed: int
) -> Iterator[ImageTextStep]:
    """Train `model` in place, yielding each step.

    Everything random derives from (seed, step). Images are shifted by up to a sixteenth of their side.

    Args:
        images: (N, H, W, C) float in [-1, 1].
        captions: N of them.
        steps: optimiser steps (AdamW).
        batch_size: pairs of a step, at most N.
        seed: of order and shifts.

    Raises: DivergedError where the loss is not finite.
    """
    optimizer = optim.AdamW(learning_rate=_rate(steps), weight_decay=0.01)
    loss_and_gradients = nn.value_and_grad(model, contrastive_loss)
    distinct, ids = np.unique(captions, return_inverse=True)
    tokens = tokenize(distinct.tolist(), model.config.max_bytes)
    batch_size, last = min(batch_size, len(images)), None
    reach = images.shape[1] // 16
    for step in range(steps):
        generator = np.random.Generator(np.random.PCG64([seed, step]))
        rows = generator.choice(len(images), batch_size, replace=False)
        batch = np.roll(images[rows], generator.integers(-reach, reach + 1, size=2), axis=(1, 2))
        there = np.unique(ids[rows])
        match = (ids[rows][:, None] == there[None, :]).astype(np.float32)
        loss, gradients = loss_and_gradients(model, mx.array(batch), mx.array(tokens[there]), mx.array(match))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, loss)
        value = loss.item()
        if not np.isfinite(value):
            raise DivergedError(step, last)
        last = value
        yield ImageTextStep(step + 1, value)


def retrieval(
    model: ImageTextModel,
    images: np.ndarray,
    captions: list[str],
    groups: np.ndarray,
    seed: int,
    confidence: float = 0.95,
    choices: int = 10,
) -> Retrieval:
    """Held-out retrieval: each image picks among its own caption and those of images of other groups.

    Args:
        images: (N, H, W, C) float in [-1, 1].
        captions: N of them.
        groups: (N,) what makes captions mean the same: class indices, or an index of the caption itself.
        seed: of the captions drawn to choose from.
        confidence: level of the interval.
        choices: captions to choose from, one from each of `choices` groups; fewer where there are fewer groups.

    Raises: ValueError for fewer than two groups: nothing to choose from.
    """
    kinds = np.unique(groups)
    if len(kinds) < 2:
        raise ValueError(f"retrieval needs captions of at least 2 groups, got {len(kinds)}")
    choices = min(choices, len(kinds))
    generator = np.random.Generator(np.random.PCG64([seed, len(images)]))
    members = {kind: np.flatnonzero(groups == kind) for kind in kinds}
    unique, ids = np.unique(captions, return_inverse=True)
    scores = images_array(model, images) @ texts_array(model, unique.tolist()).T
    hits = np.zeros(len(images), bool)
    for row, group in enumerate(groups):
        others = generator.choice(kinds[kinds != group], choices - 1, replace=False)
        rivals = [generator.choice(members[kind]) for kind in others]
        hits[row] = scores[row, ids[row]] > scores[row, ids[rivals]].max()
    return Retrieval(share(hits, confidence), choices, 1 / choices)


def _rate(steps: int) -> Callable[[mx.array], mx.array]:
    """Learning rate: up over a twentieth of the steps, then down a half cosine to zero."""
    warm = max(1, steps // 20)
    rise = optim.linear_schedule(PEAK_RATE / warm, PEAK_RATE, warm)
    return optim.join_schedules([rise, optim.cosine_decay(PEAK_RATE, max(1, steps - warm))], [warm])
