"""DPM-Solver and DPM-Solver++ of orders 1 to 3, multistep: the exponential integrator with past outputs.

In the frame x = x0 + sigma * eps: half_log_snr = -log sigma, h = log(sigma / sigma_next).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.history import History

SHORT = 15
"""Grids with fewer steps end on falling orders, as diffusers' `lower_order_final` does: high ones ring there."""


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
    predict: Literal["x0", "eps"] = "x0",
    bend_weight: float = 1.0,
    lower_order_final: bool = True,
) -> tuple[mx.array, History]:
    """x' = exp(-h) x - [g D0 + (g/z - 1) D1 + w ((g - z)/z^2 - 1/2) D2],  g = exp(z) - 1,  z = -h  (x0: DPM-Solver++)

    x' = x - sigma' [the same with z = h]   (eps: DPM-Solver)

    D0 is the newest output, D1 and D2 are its divided differences in half_log_snr, times h and h^2. At order 2 D1's
    factor is g/2, which both papers and diffusers use and which differs from the above by terms of the next order.
    w is bend_weight: the papers' code and diffusers leave it at 1, which makes order 3 one of order 2 with a small
    constant, since a second divided difference is half of a second derivative; with 2 the order is 3.
    The step to sigma 0, where h is infinite, is of first order, which is exact for a constant x0.
    Source: Lu et al. 2022a, Eqs. 3.7 and 4.3; Lu et al. 2022b, Algorithm 2 and Eq. B.8.
    """
    denoised = denoise(x, sigma)
    output = denoised if predict == "x0" else (x - denoised) / sigma
    state = state.add(sigma, output, keep=order)
    rank = min(order, len(state.past), allowed_order(state, sigma_next, order, lower_order_final))
    if sigma_next == 0.0:
        return denoised, state.advance()
    h = math.log(sigma / sigma_next)
    z = -h if predict == "x0" else h
    growth = math.expm1(z)
    slope, bend = differences(state.past[:rank], h)
    change = growth * output
    if rank == 2 and slope is not None:
        change = change + 0.5 * growth * slope
    elif rank == 3 and slope is not None and bend is not None:
        change = change + (growth / z - 1.0) * slope + (bend_weight * ((growth - z) / z**2 - 0.5)) * bend
    if predict == "x0":
        return (sigma_next / sigma) * x - change, state.advance()
    return x - sigma_next * change, state.advance()


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps


def allowed_order(state: History, sigma_next: float, order: int, lower_order_final: bool) -> int:
    """The order that the grid's end allows: falling over the last steps of a short grid, one where it ends at 0."""
    if sigma_next == 0.0:
        return 1
    return state.left if lower_order_final and len(state.sigmas) - 1 < SHORT else order


def differences(past: tuple[tuple[float, mx.array], ...], h: float) -> tuple[mx.array | None, mx.array | None]:
    """(D1, D2): first and second divided differences in half_log_snr, scaled by h, as far as there are outputs."""
    if len(past) < 2:
        return None, None
    (s0, m0), (s1, m1) = past[:2]
    r0 = math.log(s1 / s0) / h
    first = (m0 - m1) / r0
    if len(past) < 3:
        return first, None
    s2, m2 = past[2]
    r1 = math.log(s2 / s1) / h
    second = (m1 - m2) / r1
    return first + (r0 / (r0 + r1)) * (first - second), (first - second) / (r0 + r1)
