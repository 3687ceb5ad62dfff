"""A few-step run as a function that MLX differentiates: of its levels, the levels told, the weights of past outputs."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_tasks.samplers import learned
from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.history import History
from mlx_tasks.samplers.learned import LearnedSteps

Parameters = dict[str, mx.array]
"""log_first (): log of the first level; log_gaps (n - 1,): logarithms of the falls in log sigma; told (n,): log of the
level told over the level; weights (n, HISTORY - 1): of the outputs one, two ... steps back."""


APART = 1e-3
"""Least fall of log sigma between levels that are pushed against an end of the schedule."""


def from_sigmas(sigmas: Sequence[float]) -> Parameters:
    """The parameters of DPM-Solver++(2M) on given levels, the last of which is 0; learning starts there."""
    logs = np.log(np.asarray(sigmas[:-1], dtype=np.float64))
    weights = np.zeros((len(logs), learned.HISTORY - 1))
    for i, row in enumerate(learned.weights_of_2m(sigmas)):
        weights[i, : len(row)] = row
    made = {"log_first": logs[0], "log_gaps": np.log(-np.diff(logs)), "told": np.zeros(len(logs)), "weights": weights}
    return {name: mx.array(np.asarray(value, dtype=np.float32)) for name, value in made.items()}


def levels(parameters: Parameters, ends: tuple[float, float]) -> mx.array:
    """(n,) noise levels, kept within `ends` (smallest, largest) and apart from each other there."""
    falls = mx.cumsum(mx.exp(parameters["log_gaps"]))
    logs = parameters["log_first"] - mx.concatenate([mx.zeros((1,)), falls])
    low, high = np.log(ends).tolist()
    places = APART * mx.arange(len(logs))
    return mx.exp(mx.maximum(mx.minimum(logs, high - places), low + places[::-1]))


def levels_told(parameters: Parameters, ends: tuple[float, float]) -> mx.array:
    """(n,) the levels that the network is told, kept within `ends`."""
    logs = mx.log(levels(parameters, ends)) + parameters["told"]
    return mx.exp(mx.clip(logs, *np.log(ends).tolist()))


def run(denoise: Denoise, noise: mx.array, parameters: Parameters, ends: tuple[float, float]) -> mx.array:
    """(B, H, W, C) images from unit normal noise, differentiable in the parameters."""
    sigmas, told, weights = levels(parameters, ends), levels_told(parameters, ends), parameters["weights"]
    n = len(sigmas)
    path = [*(sigmas[i] for i in range(n)), 0.0]
    x = noise * mx.sqrt(1.0 + sigmas[0] ** 2)
    state: History = learned.init(x, path)
    options = {"told": [told[i] for i in range(n)], "weights": [list(row) for row in weights]}
    for i in range(n):
        x, state = learned.step(denoise, x, state, path[i], path[i + 1], None, **options)
    return x


def with_2m_weights(parameters: Parameters, ends: tuple[float, float]) -> Parameters:
    """The parameters with DPM-Solver++(2M)'s weights on their levels, and with nothing told but the truth."""
    logs = mx.log(levels(parameters, ends))
    falls = logs[:-1] - logs[1:]
    ratio = mx.exp(-falls[1:])
    inner = 0.5 * (1.0 - ratio) * falls[1:] / falls[:-1]
    column = mx.concatenate([mx.zeros((1,)), inner, mx.zeros((1,))])[: len(logs)]
    weights = mx.pad(column[:, None], [(0, 0), (0, learned.HISTORY - 2)])
    return {**parameters, "weights": weights, "told": mx.zeros_like(parameters["told"])}


def freeze(parameters: Parameters, ends: tuple[float, float]) -> LearnedSteps:
    """The parameters as plain numbers."""
    sigmas, told = np.array(levels(parameters, ends)), np.array(levels_told(parameters, ends))
    weights = np.array(parameters["weights"])
    kept = tuple(tuple(float(v) for v in row[: min(i, learned.HISTORY - 1)]) for i, row in enumerate(weights))
    return LearnedSteps((*(float(s) for s in sigmas), 0.0), tuple(float(t) for t in told), kept)
