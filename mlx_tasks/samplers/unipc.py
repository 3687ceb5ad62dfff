"""UniPC: a multistep predictor of order 1 to 3, and a corrector that reuses the next call: one order more, no call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.history import History


class Predicted(NamedTuple):
    """What the corrector needs of the step before.

    Attributes:
        history: the outputs up to that step's start.
        x: where that step started.
        rank: its order.
    """

    history: History
    x: mx.array
    rank: int


def init(x: mx.array, sigmas: Sequence[float]) -> Predicted:
    """Nothing to correct yet."""
    return Predicted(History.start(sigmas), x, 0)


def step(
    denoise: Denoise,
    x: mx.array,
    state: Predicted,
    sigma: float,
    sigma_next: float,
    key: mx.array | None,
    *,
    order: int = 2,
    variant: Literal["bh1", "bh2"] = "bh2",
    lower_order_final: bool = True,
) -> tuple[mx.array, Predicted]:
    """Correct x with the output that is made at it, then predict x at sigma_next.

    predict:  x' = exp(-h) x - g m0 - B sum_k w_k (m_k - m0) / r_k,           g = exp(-h) - 1,  B = -h (bh1) or g (bh2)
    correct:  the same for the last step with one more node, the output at its end (r = 1).
    The weights solve sum_k r_k^(j-1) w_k = j! phi_(j+1)(-h) * (-h) / B, so that powers up to the order are integrated
    exactly. Orders fall towards the end, and the step to sigma 0 is of first order, as in diffusers.
    Source: Zhao et al. 2023, Algorithms 5 and 6 (data prediction), Eq. 9.
    """
    denoised = denoise(x, sigma)
    history, start, rank = state
    if rank:
        sigma_start, anchor = history.past[0]
        x = _advance(start, history, sigma_start, sigma, rank, variant, anchor, end=denoised)
    history = history.add(sigma, denoised, keep=order)
    rank = min(order, len(history.past), history.left if lower_order_final else order)
    if sigma_next == 0.0:
        return denoised, Predicted(history.advance(), x, 1)
    predicted = _advance(x, history, sigma, sigma_next, rank, variant, denoised)
    return predicted, Predicted(history.advance(), x, rank)


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps


def _advance(
    x: mx.array,
    history: History,
    sigma: float,
    sigma_next: float,
    rank: int,
    variant: str,
    newest: mx.array,
    end: mx.array | None = None,
) -> mx.array:
    """x at sigma_next from x at sigma: the predictor, or with the output at the end the corrector."""
    h = math.log(sigma / sigma_next)
    growth = math.expm1(-h)
    scale = -h if variant == "bh1" else growth
    older = history.past[1:rank]
    ratios = [math.log(sigma / other) / h for other, _ in older]
    nodes = [(output - newest) / ratio for (_, output), ratio in zip(older, ratios, strict=True)]
    if end is not None:
        ratios, nodes = [*ratios, 1.0], [*nodes, end - newest]
    x = (sigma_next / sigma) * x - growth * newest
    for weight, node in zip(_weights(ratios, h, scale), nodes, strict=True):
        x = x - (scale * weight) * node
    return x


def _weights(ratios: list[float], h: float, scale: float) -> list[float]:
    """The weights of differences at these ratios; 1/2 for a single one, as the paper takes it."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    phi, factorial, right = math.expm1(-h) / -h - 1.0, 1.0, []
    for power in range(1, len(ratios) + 1):
        right.append(phi * factorial / scale)
        factorial *= power + 1
        phi = phi / -h - 1.0 / factorial
    matrix = np.array([[ratio**power for ratio in ratios] for power in range(len(ratios))])
    return np.linalg.solve(matrix, np.array(right)).tolist()
