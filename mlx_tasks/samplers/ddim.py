"""DDIM: Euler's method on dx/dsigma = (x - denoised) / sigma, and with eta its noisy relatives up to DDPM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.noise import normal


def init(x: mx.array, sigmas: Sequence[float]) -> None:
    """DDIM remembers nothing."""


def step(
    denoise: Denoise,
    x: mx.array,
    state: None,
    sigma: float,
    sigma_next: float,
    key: mx.array | None,
    *,
    eta: float = 0.0,
    clip: float | None = None,
) -> tuple[mx.array, None]:
    """x + (sigma_down - sigma) * d + sigma_up * z,  d = (x - denoised) / sigma;  sigma_next = 0 gives denoised exactly.

    sigma_up = eta * sigma_next * sqrt(1 - sigma_next^2 / sigma^2),  sigma_down = sqrt(sigma_next^2 - sigma_up^2).
    eta = 0 is DDIM and Euler (also in the frame of flow matching); eta = 1 is DDPM with its posterior variance,
    which in this frame is ancestral Euler.
    clip: the estimate is clipped to [-clip, clip], the noise beside it is not, as with diffusers' clip_sample.
    Source: Song et al. 2021 (DDIM), Eqs. 12 and 16; Ho et al. 2020, Eq. 7.
    """
    denoised = denoise(x, sigma)
    up = eta * sigma_next * math.sqrt(1.0 - (sigma_next / sigma) ** 2) if eta else 0.0
    ratio = math.sqrt(sigma_next**2 - up**2) / sigma
    bounded = denoised if clip is None else mx.clip(denoised, -clip, clip)
    x = bounded + ratio * (x - denoised) if clip is not None else ratio * x + (1.0 - ratio) * denoised
    return (x + up * normal(x, key) if up else x), None


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps
