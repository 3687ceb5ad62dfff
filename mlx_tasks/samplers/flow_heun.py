"""Heun's method in the frame of flow matching, t = sigma / (1 + sigma): the velocity eps - x0 averaged over a step."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise


def init(x: mx.array, sigmas: Sequence[float]) -> None:
    """Heun remembers nothing."""


def step(
    denoise: Denoise, x: mx.array, state: None, sigma: float, sigma_next: float, key: mx.array | None
) -> tuple[mx.array, None]:
    """y' = y + (t' - t) (v(y, t) + v(y + (t' - t) v, t')) / 2,  v = (y - x0) / t,

    in y = (1 - t) x0 + t eps = x / (1 + sigma).

    Euler's method in this frame is `ddim`: both follow the straight line from x to the estimate.
    Source: Lipman et al. 2023, Eq. 20 (the path); Esser et al. 2024 for sampling it by Heun.
    """
    t, t_next = sigma / (1.0 + sigma), sigma_next / (1.0 + sigma_next)
    y, denoised = x / (1.0 + sigma), denoise(x, sigma)
    if sigma_next == 0.0:
        return denoised, None
    v = (y - denoised) / t
    ahead = y + (t_next - t) * v
    v_next = (ahead - denoise(ahead * (1.0 + sigma_next), sigma_next)) / t_next
    return (y + (0.5 * (t_next - t)) * (v + v_next)) * (1.0 + sigma_next), None


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return 2 * num_steps - 1
