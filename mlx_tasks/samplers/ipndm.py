"""iPNDM: Adams and Bashforth's fixed weights on dx/dsigma, of rising order up to four. One call a step."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.history import History

WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def init(x: mx.array, sigmas: Sequence[float]) -> History:
    """No slopes yet: the first steps are of lower order."""
    return History.start(sigmas)


def step(
    denoise: Denoise,
    x: mx.array,
    state: History,
    sigma: float,
    sigma_next: float,
    key: mx.array | None,
    *,
    order: int = 4,
) -> tuple[mx.array, History]:
    """x + (sigma_next - sigma) * sum_k w_k d_k,  d = (x - denoised) / sigma, the newest first.

    The weights are those of equal steps and do not follow the grid, which bounds the order at two on other grids. The
    step to sigma 0 is of first order: past slopes say nothing of where it ends.
    Source: Zhang & Chen 2023, Section 3.4, after Liu et al. 2022 (PNDM), Eq. 12.
    """
    denoised = denoise(x, sigma)
    if sigma_next == 0.0:
        return denoised, state.advance()
    state = state.add(sigma, (x - denoised) / sigma, keep=order)
    weights = WEIGHTS[min(order, len(state.past))]
    for weight, (_, d) in zip(weights, state.past, strict=True):
        x = x + ((sigma_next - sigma) * weight) * d
    return x, state.advance()


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps
