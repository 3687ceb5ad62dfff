"""DDIM: Euler's method on dx/dsigma = (x - denoised) / sigma. First order, one call a step."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise


def init(x: mx.array, sigmas: Sequence[float]) -> None:
    """DDIM remembers nothing."""


def step(
    denoise: Denoise, x: mx.array, state: None, sigma: float, sigma_next: float, key: mx.array | None
) -> tuple[mx.array, None]:
    """x + (sigma_next - sigma) * d,  d = (x - denoised) / sigma; written so that sigma_next = 0 gives denoised exactly.

    Source: Song et al. 2021 (DDIM), Eq. 13 and 14 with eta = 0.
    """
    denoised = denoise(x, sigma)
    ratio = sigma_next / sigma
    return ratio * x + (1.0 - ratio) * denoised, None


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps
