"""DDIM: Euler's method on dx/dsigma = (x - denoised) / sigma, and with eta its noisy relatives up to DDPM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    clip: float | Callable[[mx.array], mx.array] | None = None,
    large: bool = False,
) -> tuple[mx.array, None]:
    """x + (sigma_down - sigma) * d + sigma_up * z,  d = (x - denoised) / sigma;  sigma_next = 0 gives denoised exactly.

    sigma_up = eta * sigma_next * sqrt(1 - sigma_next^2 / sigma^2),  sigma_down = sqrt(sigma_next^2 - sigma_up^2).
    eta = 0 is DDIM and Euler (also in the frame of flow matching); eta = 1 is DDPM with its posterior variance,
    which in this frame is ancestral Euler.
    clip: the estimate is clipped to [-clip, clip], or by a function, the noise beside it is not, as with diffusers'
        clip_sample.
    large: the noise added has DDPM's larger variance, beta, in place of the posterior's (diffusers' "fixed_large").
    Source: Song et al. 2021 (DDIM), Eqs. 12 and 16; Ho et al. 2020, Eq. 7.
    """
    denoised = denoise(x, sigma)
    up = eta * sigma_next * math.sqrt(1.0 - (sigma_next / sigma) ** 2) if eta else 0.0
    ratio = math.sqrt(sigma_next**2 - up**2) / sigma
    if clip is None:
        x = ratio * x + (1.0 - ratio) * denoised
    else:
        bounded = clip(denoised) if callable(clip) else mx.clip(denoised, -clip, clip)
        x = bounded + ratio * (x - denoised)
    if large:
        up *= (sigma / sigma_next) * math.sqrt((1.0 + sigma_next**2) / (1.0 + sigma**2)) if up else 1.0
    return (x + up * normal(x, key) if up else x), None


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps
