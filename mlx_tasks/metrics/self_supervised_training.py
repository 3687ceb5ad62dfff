"""Training of the built-in features: an encoder and a decoder learn to take noise out of the training images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_tasks.errors import DivergedError
from mlx_tasks.metrics.extractors.self_supervised import Encoder, initialise

PEAK_RATE = 2e-3
SIGMAS = (0.2, 2.0)
"""Noise levels, log-uniform between these: from grain to where only the gross shape is left."""


class FeatureStep(NamedTuple):
    """One optimiser step; the loss is the mean squared error of the clean pixels, in units of the range over 2."""

    step: int
    loss: float


class Denoiser(nn.Module):
    """The encoder, and a decoder that doubles its maps and takes the encoder's of each level beside them."""

    def __init__(self, encoder: Encoder, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        widths = encoder.config.widths
        inputs = [widths[-1], *(2 * width for width in widths[-2::-1])]
        outputs = [*widths[-2::-1], widths[0] // 2]
        self.ups = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, outputs, strict=True)]
        self.out = nn.Conv2d(outputs[-1], encoder.config.channels, 3, padding=1)
        for place, layer in enumerate((*self.ups, self.out)):
            initialise(layer, seed + 1 + place)

    def __call__(self, images: mx.array) -> mx.array:
        """(B, H, W, C), the clean images as far as they can be told."""
        maps = self.encoder(images)
        h = mx.maximum(self.ups[0](maps[-1]), 0)
        for up, beside in zip(self.ups[1:], maps[-2::-1], strict=True):
            h = mx.repeat(mx.repeat(h, 2, axis=1), 2, axis=2)
            missing = [(0, b - a) for a, b in zip(h.shape[1:3], beside.shape[1:3], strict=True)]
            h = mx.pad(h, [(0, 0), *missing, (0, 0)], mode="edge")
            h = mx.maximum(up(mx.concatenate([h, beside], axis=-1)), 0)
        return self.out(h)


def train_features(
    encoder: Encoder, images: np.ndarray, steps: int, batch_size: int, seed: int
) -> Iterator[FeatureStep]:
    """Train `encoder` in place, yielding each step; everything random derives from (seed, step).

    x = (x0 + sigma eps) / sqrt(1 + sigma^2),  log sigma uniform over SIGMAS,  loss = mean (D(x) - x0)^2.

    Why denoising: what tells clean from noisy images at many scales is what tells good from bad ones. Agreement of two
    views (VICReg) and telling apart what was done to an image were tried on digits too and saw less (docs/metrics.md).

    Args:
        images: (N, H, W, C) float32 in [-1, 1]; no labels.
        steps: optimiser steps (AdamW, cosine from 2e-3).
        batch_size: images of a step, at most N.

    Raises: DivergedError where the loss is not finite.
    Source: Vincent et al. 2010 (denoising autoencoders); noise levels as in Song & Ermon 2019.
    """
    model = Denoiser(encoder, seed)
    optimizer = optim.AdamW(learning_rate=optim.cosine_decay(PEAK_RATE, steps), weight_decay=1e-4)
    loss_and_gradients = nn.value_and_grad(model, lambda noisy, clean: mx.square(model(noisy) - clean).mean())
    batch_size, last = min(batch_size, len(images)), None
    for step in range(steps):
        generator = np.random.Generator(np.random.PCG64([seed, step, 7]))
        clean = images[generator.choice(len(images), batch_size, replace=False)].astype(np.float32)
        low, high = math.log(SIGMAS[0]), math.log(SIGMAS[1])
        sigma = np.exp(generator.uniform(low, high, (batch_size, 1, 1, 1)))
        noisy = (clean + sigma * generator.standard_normal(clean.shape)) / np.sqrt(1 + sigma**2)
        loss, gradients = loss_and_gradients(mx.array(noisy.astype(np.float32)), mx.array(clean))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, loss)
        value = loss.item()
        if not np.isfinite(value):
            raise DivergedError(step, last)
        last = value
        yield FeatureStep(step + 1, value)
