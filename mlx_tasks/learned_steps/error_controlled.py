"""Steps chosen on the way, image by image, by an error estimate that costs nothing: no search, no grid.

DPM-Solver++ of orders 1 and 2 are an embedded pair: they share every evaluation, and differ by one term, which is
known before the step is taken. So the step is made as long as the tolerance allows, and none is ever rejected. Every
image goes at its own pace, in one batch (a network is told each image's own timestep), and leaves it when it is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_tasks.diffusion.parameterization import per_image
from mlx_tasks.errors import DataError
from mlx_tasks.samplers.driver import SamplerDivergedError

PacedRows = Callable[[np.ndarray], Callable[[mx.array, mx.array], mx.array]]
"""Rows of the batch -> their denoiser, which takes levels (B,), one an image."""

_HALVINGS = 30
_USUAL = 0.02


@dataclass(frozen=True)
class Control:
    """How steps are chosen.

    Attributes:
        tolerance: RMS difference of the two orders that a step may have, weighted by how much of it is left at the
            end for data of deviation `sigma_data`: 1 / sqrt(1 + (sigma' / sigma_data)^2).
        start: first level sigma.
        first: length of the first step in log sigma, before anything is known, at a tolerance of 0.02 and above; below
            it is shorter by the root of their ratio, as the others are.
        longest: of every other step.
        most: calls of an image; the last estimate is then its result.
        sigma_data: standard deviation of the pixels, in units of half their range.
    Raises: DataError naming the number and its rule.
    """

    tolerance: float
    start: float = 30.0
    first: float = 2.0
    longest: float = 2.5
    most: int = 64
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        for name in ("tolerance", "start", "first", "longest", "sigma_data"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0.0):
                raise DataError(f"{name} must be finite and above 0, got {getattr(self, name)!r}")
        if self.most < 2:
            raise DataError(f"most must be at least 2 calls, got {self.most}")


@dataclass(frozen=True)
class PacedSamples:
    """What a run gives.

    Attributes:
        images: (B, H, W, C) float.
        nfe: (B,) network evaluations each image took, guidance counted twice.
        levels: the noise levels each image was evaluated at, falling.
        met: (B,) whether each image's estimate had settled within the tolerance when it left.
    """

    images: mx.array
    nfe: np.ndarray
    levels: tuple[tuple[float, ...], ...]
    met: np.ndarray


def sample_within(denoise: PacedRows, noise: mx.array, control: Control) -> PacedSamples:
    """Draw images, each at the pace its own error estimate allows.

    denoise: as `network_denoiser` makes it for the labels of the rows; noise: (B, H, W, C) unit normal.
    With D the estimate and s = RMS(D - D_before) / h_before its rate of change in log sigma, the pair's difference
    over a step h is (1 - exp(-h)) h s / 2, which rises with h: the longest step within the tolerance is found by
    bisection. An image is done when s itself is within it: the estimate no longer changes.
    Source: Lu et al. 2022b, Algorithm 2 (the pair); Hairer, Norsett & Wanner 1993, Section II.4 (step control).
    Raises: SamplerDivergedError where an estimate is not finite, naming the call (from 0) and its level.
    """
    count = len(noise)
    rows, sigma = np.arange(count), np.full(count, control.start)
    images: list[mx.array | None] = [None] * count
    nfe, visited, met = np.zeros(count, int), [[] for _ in range(count)], np.zeros(count, bool)
    x, before, fallen = noise * math.sqrt(1.0 + control.start**2), None, np.zeros(count)
    for call in range(1, control.most + 1):
        run = denoise(rows)
        estimate = run(x, mx.array(sigma.astype(np.float32)))
        mx.eval(x, estimate)
        cost = getattr(run, "evaluations_at", lambda _: 1)
        for row, level in zip(rows, sigma, strict=True):
            visited[row].append(float(level))
            nfe[row] += cost(float(level))
        if before is None:
            step, change = np.full(count, control.first * min(1.0, (control.tolerance / _USUAL) ** 0.5)), None
            done = np.zeros(count, bool)
        else:
            change = estimate - before
            size = np.sqrt(np.square(np.array(change, dtype=np.float64)).mean(axis=tuple(range(1, noise.ndim))))
            if not np.isfinite(size).all():
                worst = int(np.flatnonzero(~np.isfinite(size))[0])
                raise SamplerDivergedError(call - 1, float(sigma[worst]))
            rate = size / fallen
            settled = rate <= control.tolerance
            met[rows[settled]] = True
            done = settled | (call == control.most)
            step = _longest(rate, sigma, control)
        for place in np.flatnonzero(done):
            images[rows[place]] = estimate[int(place)]
        if done.all():
            break
        kept = np.flatnonzero(~done)
        left = mx.array(kept)
        rows, sigma, step, held = rows[kept], sigma[kept], step[kept], fallen[kept]
        x, estimate, change = x[left], estimate[left], None if change is None else change[left]
        share = -np.expm1(-step)
        x = _column(1.0 - share, x) * x + _column(share, x) * estimate
        if change is not None:
            x = x + _column(share * step / (2.0 * held), x) * change
        before, fallen, sigma = estimate, step, sigma * np.exp(-step)
    levels = tuple(tuple(path) for path in visited)
    return PacedSamples(mx.stack([image for image in images if image is not None]), nfe, levels, met)


def _longest(rate: np.ndarray, sigma: np.ndarray, control: Control) -> np.ndarray:
    """(B,) the longest steps whose weighted difference of the two orders is within the tolerance."""
    low, high = np.full(len(rate), 1e-3), np.full(len(rate), control.longest)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        following = sigma * np.exp(-middle)
        weight = 1.0 / np.sqrt(1.0 + (following / control.sigma_data) ** 2)
        above = -np.expm1(-middle) * middle * 0.5 * rate * weight > control.tolerance
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return low


def _column(values: Sequence[float] | np.ndarray, x: mx.array) -> mx.array:
    return per_image(mx.array(np.asarray(values, dtype=np.float32)), x)
