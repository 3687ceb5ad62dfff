"""Heun's method on dx/dsigma = (x - denoised) / sigma. Second order, two calls a step, one where it ends at 0."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise


def init(x: mx.array, sigmas: Sequence[float]) -> None:
    """Heun remembers nothing."""


def step(
    denoise: Denoise, x: mx.array, state: None, sigma: float, sigma_next: float, key: mx.array | None
) -> tuple[mx.array, None]:
    """An Euler step, then the slope averaged with that at its end; no second slope exists at sigma_next = 0.

    Source: Karras et al. 2022, Algorithm 1.
    """
    denoised = denoise(x, sigma)
    if sigma_next == 0.0:
        return denoised, None
    d = (x - denoised) / sigma
    x_euler = x + (sigma_next - sigma) * d
    d_next = (x_euler - denoise(x_euler, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * 0.5 * (d + d_next), None


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return 2 * num_steps - 1
