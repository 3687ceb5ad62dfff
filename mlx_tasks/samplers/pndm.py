"""PNDM as diffusers' PNDMScheduler takes it: a start by Runge and Kutta, or by one step taken twice, then the multistep
formula of Adams and Bashforth with fixed weights on what the network predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.history import History
from mlx_tasks.samplers.ipndm import WEIGHTS

MULTISTEP = 4
"""Outputs that the multistep formula takes."""
RUNGE_KUTTA = 3
"""Steps of the start by Runge and Kutta, of four calls each."""


def init(x: mx.array, sigmas: Sequence[float]) -> History:
    """No outputs yet."""
    return History.start(sigmas)


def step(
    denoise: Denoise,
    x: mx.array,
    state: History,
    sigma: float,
    sigma_next: float,
    key: mx.array | None,
    *,
    predict: Literal["eps", "v"] = "eps",
    middles: Sequence[tuple[float, float]] = (),
    twice: bool = True,
) -> tuple[mx.array, History]:
    """x' = x + (sigma' - sigma) eps,  eps from a weighted sum of the network's outputs.

    Runge and Kutta: (k1 + 2 k2 + 2 k3 + k4) / 6 with k2 and k3 in the middle. Else the first step is taken to where it
    leads, and again from its start with the mean of the outputs at both ends; later ones weigh the last outputs by
    (3, -1)/2, (23, -16, 5)/12 and (55, -59, 37, -9)/24.
    predict: what the outputs are that are weighed; the network's own kind, as diffusers weighs them.
    middles: of each Runge-Kutta step the two levels in the middle, where k2 and k3 are made (in diffusers they differ
        by one timestep where the stride is odd); empty for the other start.
    twice: whether there is a level to take the first step to, which a run of one step lacks.
    Source: Liu et al. 2022, Eq. 9, 12 and 13 and Algorithm 2; diffusers 0.42, `PNDMScheduler`.
    """

    def output(at: mx.array, level: float) -> mx.array:
        return _output(at, denoise(at, level), level, predict)

    def moved(weighed: mx.array, to: float) -> mx.array:
        """x carried from sigma to another level by an output."""
        eps = weighed
        if predict == "v":
            eps = weighed / math.sqrt(1.0 + sigma**2) + (sigma / (1.0 + sigma**2)) * x
        return x + (to - sigma) * eps

    x0 = denoise(x, sigma)
    newest = _output(x, x0, sigma, predict)
    state = state.add(sigma, newest, keep=MULTISTEP)
    if state.index < len(middles):
        first, second = middles[state.index]
        k2 = output(moved(newest, first), first)
        k3 = output(moved(k2, second), second)
        k4 = output(moved(k3, sigma_next), sigma_next)
        weighed = (newest + 2.0 * k2 + 2.0 * k3 + k4) / 6.0
    elif state.index == 0 and not (twice and sigma_next > 0.0):  # the only step, which rounds less in this form
        return x0 + (sigma_next / sigma) * (x - x0), state.advance()
    elif state.index == 0:
        weighed = (newest + output(moved(newest, sigma_next), sigma_next)) / 2.0
    else:
        weighed = _multistep([past for _, past in state.past])
    return moved(weighed, sigma_next), state.advance()


def calls(num_steps: int) -> int:
    """Denoiser calls of a run whose first step is taken twice; a run of one step has nowhere to take it to."""
    return num_steps + (num_steps > 1)


def _output(x: mx.array, x0: mx.array, sigma: float, predict: str) -> mx.array:
    """The network's output, eps or v, from its estimate."""
    eps = (x - x0) / sigma
    return eps if predict == "eps" else (eps - sigma * x0) / math.sqrt(1.0 + sigma**2)


def _multistep(past: Sequence[mx.array]) -> mx.array:
    """Adams and Bashforth's mean of the last outputs, newest first."""
    first, *older = (weight * output for weight, output in zip(WEIGHTS[len(past)], past, strict=True))
    return sum(older, first)
