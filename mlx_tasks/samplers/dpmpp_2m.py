"""DPM-Solver++(2M): the exponential integrator with the last two x0 estimates. Second order, one call a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise


class Previous(NamedTuple):
    """The step before this one."""

    denoised: mx.array
    sigma: float


def init(x: mx.array, sigmas: Sequence[float]) -> None:
    """The first step has no step before it and is of first order."""


def step(
    denoise: Denoise, x: mx.array, state: Previous | None, sigma: float, sigma_next: float, key: mx.array | None
) -> tuple[mx.array, Previous]:
    """(sigma_next / sigma) * x + (1 - exp(-h)) * D,  h = log(sigma / sigma_next),  r = h_previous / h,

    D = denoised + (denoised - denoised_previous) / (2 r).
    The step to sigma 0, where h is infinite, is of first order (D = denoised), as diffusers' final step is.
    Source: Lu et al. 2022b, Algorithm 2, in the frame x = x0 + sigma * eps (alpha = 1, half_log_snr = -log sigma).
    """
    denoised = denoise(x, sigma)
    ratio = sigma_next / sigma  # exp(-h)
    if state is None or sigma_next == 0.0:
        return ratio * x + (1.0 - ratio) * denoised, Previous(denoised, sigma)
    h, h_previous = math.log(sigma / sigma_next), math.log(state.sigma / sigma)
    weight = h / (2.0 * h_previous)
    slope = (1.0 + weight) * denoised - weight * state.denoised
    return ratio * x + (1.0 - ratio) * slope, Previous(denoised, sigma)


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps
