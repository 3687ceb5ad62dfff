"""EDM's stochastic sampler: some noise is added back before each of Heun's steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from mlx_tasks.samplers import heun
from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.noise import normal


def init(x: mx.array, sigmas: Sequence[float]) -> int:
    """The number of steps, which the churn is divided by."""
    return len(sigmas) - 1


def step(
    denoise: Denoise,
    x: mx.array,
    state: int,
    sigma: float,
    sigma_next: float,
    key: mx.array | None,
    *,
    churn: float = 40.0,
    sigma_min: float = 0.05,
    sigma_max: float = 50.0,
    noise_scale: float = 1.003,
) -> tuple[mx.array, int]:
    """sigma_hat = (1 + gamma) sigma,  x_hat = x + sqrt(sigma_hat^2 - sigma^2) noise_scale z,  then Heun's step.

    gamma = min(churn / num_steps, sqrt(2) - 1) inside [sigma_min, sigma_max], else 0.
    Source: Karras et al. 2022, Algorithm 2; the defaults are Table 5's for ImageNet 64.
    """
    gamma = min(churn / state, math.sqrt(2.0) - 1.0) if sigma_min <= sigma <= sigma_max else 0.0
    if gamma > 0.0:
        raised = sigma * (1.0 + gamma)
        x = x + (math.sqrt(raised**2 - sigma**2) * noise_scale) * normal(x, key)
        sigma = raised
    x, _ = heun.step(denoise, x, None, sigma, sigma_next, None)
    return x, state


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return 2 * num_steps - 1
