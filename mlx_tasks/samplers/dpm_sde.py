"""DPM-Solver++ for the SDE, multistep, orders 1 to 3: noise is added as fast as the reverse diffusion asks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.dpm_multistep import allowed_order, differences
from mlx_tasks.samplers.history import History
from mlx_tasks.samplers.noise import normal


def init(x: mx.array, sigmas: Sequence[float]) -> History:
    """No outputs yet: the first steps are of lower order."""
    return History.start(sigmas)


def step(
    denoise: Denoise,
    x: mx.array,
    state: History,
    sigma: float,
    sigma_next: float,
    key: mx.array | None,
    *,
    order: int = 2,
    lower_order_final: bool = True,
) -> tuple[mx.array, History]:
    """x' = exp(-2h) x + g D0 + g/2 D1 + sigma' sqrt(g) z,  g = 1 - exp(-2h),  h = log(sigma / sigma'),  z ~ N(0, 1).

    Order 3: x' = exp(-2h) x + g D0 + (1 - g/(2h)) D1 + ((g - 2h) / (2h)^2 + 1/2) D2 + noise; differences as in
    `dpm_multistep`. diffusers 0.42 subtracts the 1/2 of D2's factor, which then does not vanish with h; this adds it.
    Source: Lu et al. 2022b, Appendix E.4, in the frame alpha = 1; order 3 as in k-diffusion's dpmpp_3m_sde.
    Raises: ValueError without a key.
    """
    denoised = denoise(x, sigma)
    state = state.add(sigma, denoised, keep=order)
    rank = min(order, len(state.past), allowed_order(state, sigma_next, order, lower_order_final))
    if sigma_next == 0.0:
        return denoised, state.advance()
    h = math.log(sigma / sigma_next)
    share = -math.expm1(-2.0 * h)
    slope, bend = differences(state.past[:rank], h)
    x = math.exp(-2.0 * h) * x + share * denoised
    if rank == 2 and slope is not None:
        x = x + 0.5 * share * slope
    elif rank == 3 and slope is not None and bend is not None:
        x = x + (1.0 - share / (2.0 * h)) * slope + ((share - 2.0 * h) / (2.0 * h) ** 2 + 0.5) * bend
    return x + sigma_next * math.sqrt(share) * normal(x, key), state.advance()


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps
