"""Multistep consistency sampling: jump to the estimate, add fresh noise, jump again."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.noise import normal


def init(x: mx.array, sigmas: Sequence[float]) -> None:
    """Nothing is remembered."""


def step(
    denoise: Denoise, x: mx.array, state: None, sigma: float, sigma_next: float, key: mx.array | None
) -> tuple[mx.array, None]:
    """denoised + sigma_next * z,  z ~ N(0, 1).

    Source: Song et al. 2023, Algorithm 1 (with its sigma_min at 0); Luo et al. 2023 (LCM), Algorithm 3.
    """
    denoised = denoise(x, sigma)
    return (denoised if sigma_next == 0.0 else denoised + sigma_next * normal(x, key)), None


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps
