"""DEIS: eps is extrapolated as a polynomial in log sigma, and the integral over sigma is taken exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.dpm_multistep import allowed_order
from mlx_tasks.samplers.history import History


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
    order: int = 3,
    lower_order_final: bool = True,
) -> tuple[mx.array, History]:
    """x' = x + sum_k C_k eps_k,  C_k = integral from sigma to sigma' of the k-th Lagrange polynomial in log sigma.

    Source: Zhang & Chen 2023, Eqs. 14 and 15 (the log-rho variant; rho is sigma in this frame).
    """
    denoised = denoise(x, sigma)
    state = state.add(sigma, (x - denoised) / sigma, keep=order)
    if sigma_next == 0.0:
        return denoised, state.advance()
    past = state.past[: min(order, allowed_order(state, sigma_next, order, lower_order_final))]
    for weight, (_, eps) in zip(_weights([s for s, _ in past], sigma, sigma_next), past, strict=True):
        x = x + weight * eps
    return x, state.advance()


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps


def _weights(nodes: list[float], sigma: float, sigma_next: float) -> list[float]:
    """(K,) integrals from sigma to sigma_next of the Lagrange polynomials through log of the nodes.

    With u = log(s / sigma): integral of u^k ds = s u^k - k * integral of u^(k-1) ds.
    """
    logs = np.array([math.log(node / sigma) for node in nodes])
    end, moments = math.log(sigma_next / sigma), []
    for power in range(len(nodes)):
        lower = moments[-1] * power if moments else 0.0
        moments.append(sigma_next * end**power - (sigma if power == 0 else 0.0) - lower)
    return np.linalg.solve(np.vander(logs, increasing=True).T, np.array(moments)).tolist()
