"""A multistep solver whose noise levels, the levels the network is told, and the weights of past outputs were learned.

It works on numbers and, so that it can be learned, on MLX scalars alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.history import History

HISTORY = 3
"""Outputs that a step may use: the newest and two before it."""


def init(x: mx.array, sigmas: Sequence[float]) -> History:
    """No outputs yet."""
    return History(tuple(sigmas))


def step(
    denoise: Denoise,
    x: mx.array,
    state: History,
    sigma: Any,
    sigma_next: Any,
    key: mx.array | None,
    *,
    told: Sequence[Any] | None = None,
    weights: Sequence[Sequence[Any]] | None = None,
) -> tuple[mx.array, History]:
    """x' = (s'/s) x + (1 - s'/s) D0 + sum_j w_ij (D0 - D_j),  D_i = denoise(x_i, told_i).

    Each step i has at most two weights, w_i1 and w_i2, for the outputs one and two steps back. Whatever they are, a
    constant estimate is followed exactly, as by every other solver here; DPM-Solver++(2M) is w_i1 = (1 - s'/s)/2 / r,
    and what nobody learned is that.
    told: the noise level the network is told at each step; by default the true one.
    The step to sigma 0 has weights too.
    Source: Tong et al. 2025 (LD3) for the levels told; Frankel et al. 2025 (S4S) and Oganov et al. 2025 (GAS) for
    learned weights.
    Raises: ValueError unless there is one told level and one list of at most two weights a step.
    """
    steps = len(state.sigmas) - 1
    told = state.sigmas[:-1] if told is None else told
    weights = weights_of_2m(state.sigmas) if weights is None else weights
    if len(told) != steps or len(weights) != steps or any(len(row) > HISTORY - 1 for row in weights):
        raise ValueError(
            f"learned needs {steps} told levels and {steps} lists of at most {HISTORY - 1} weights, got "
            f"{len(told)} and {len(weights)}: these are the options of another grid"
        )
    index = state.index
    newest = denoise(x, told[index])
    ratio = sigma_next / sigma
    x = ratio * x + (1.0 - ratio) * newest
    for weight, (_, older) in zip(weights[index], state.past, strict=False):
        x = x + weight * (newest - older)
    return x, state.add(sigma, newest, keep=HISTORY - 1).advance()


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps


def weights_of_2m(sigmas: Sequence[float]) -> list[list[float]]:
    """The weights that make this solver DPM-Solver++(2M) on these noise levels, the last of which is 0."""
    rows: list[list[float]] = []
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        if i == 0 or following == 0.0:
            rows.append([0.0] * min(i, HISTORY - 1))
            continue
        r = math.log(sigmas[i - 1] / sigma) / math.log(sigma / following)
        rows.append([(1.0 - following / sigma) / (2.0 * r), 0.0][: min(i, HISTORY - 1)])
    return rows
