"""The one sampling loop: it checks the grid, counts network evaluations, and says at which step a number broke."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx

from mlx_tasks.errors import DivergedError, StageError
from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.grids import Grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.noise import split
from mlx_tasks.samplers.solvers import find_solver

Callback = Callable[[int, float, mx.array], bool | None]
"""callback(step_index, sigma, x0_estimate), after each step: the estimate the step started from.

True ends the run with that estimate as its result."""


@dataclass(frozen=True)
class Samples:
    """What a run gives.

    Attributes:
        images: (B, H, W, C) float in [-1, 1] up to the model's error; not clipped.
        nfe: network evaluations an image cost, both guidance branches counted.
    """

    images: mx.array
    nfe: int


class SamplerDivergedError(DivergedError):
    """A sample stopped being finite.

    Attributes:
        step: index of the sampler's step (from 0) whose result was not finite.
        sigma: the noise level that step started at.
    """

    def __init__(self, step: int, sigma: float) -> None:
        self.step, self.sigma, self.last_finite_loss = step, sigma, None
        StageError.__init__(
            self, f"samples must stay finite; they are not after step {step} from sigma {sigma:.6g}: check the weights"
        )


def sample(
    denoise: Denoise | Callable[[mx.array, float], mx.array],
    noise: mx.array,
    grid: Grid | LearnedSteps | Sequence[float],
    solver: str = "ddim",
    key: mx.array | None = None,
    callback: Callback | None = None,
    options: dict[str, Any] | None = None,
    start: float | None = None,
) -> Samples:
    """Images from noise, along the grid's noise levels.

    noise: (B, H, W, C), unit normal; the start is noise * sqrt(1 + sigma_0^2), of unit variance in diffusers' frame.
    grid: a Grid, learned steps, which bring their own solver and options, or falling noise levels of which only the
        last may be 0.
    key: for solvers that draw noise: (2,), or (B, 2), one an image, whose noise then depends on no other image.
    options: the solver's own numbers (eta, order, churn ...), by name.
    start: the run begins at start * noise instead.
    Each step is evaluated once, and its finiteness is read then: no synchronisation is added to the one there is.
    Raises: ValueError for a bad grid, an unknown solver or option, or a missing key; SamplerDivergedError naming the
        step and its sigma.
    """
    if isinstance(grid, LearnedSteps):
        sigmas, method = grid.sigmas, find_solver("learned", **grid.options)
    else:
        sigmas = grid.sigmas if isinstance(grid, Grid) else check_sigmas(grid)
        method = find_solver(solver, **(options or {}))
    counted = Counted(denoise)
    x = noise * (math.sqrt(1.0 + sigmas[0] ** 2) if start is None else start)
    state = method.init(x, sigmas)
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        step_key = None
        if key is not None:
            key, step_key = split(key)
        counted.first = None
        x, state = method.step(counted, x, state, sigma, sigma_next, step_key)
        total = x.sum()
        mx.eval(x, total)
        if not math.isfinite(float(total)):
            raise SamplerDivergedError(index, sigma)
        if callback is not None and counted.first is not None:
            if callback(index, sigma, counted.first) is True:
                return Samples(counted.first, counted.evaluations)
    return Samples(x, counted.evaluations)


def check_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Noise levels as floats.  Raises: ValueError unless they are two or more, finite, strictly falling, and >= 0."""
    levels = tuple(float(s) for s in sigmas)
    if len(levels) < 2:
        raise ValueError(f"a grid needs at least two noise levels, got {list(levels)}")
    if not all(math.isfinite(s) and s >= 0.0 for s in levels):
        raise ValueError(f"noise levels must be finite and not negative, got {list(levels)}")
    if any(b >= a for a, b in pairwise(levels)):
        raise ValueError(f"noise levels must fall strictly, got {list(levels)}")
    return levels


class Counted:
    """A denoiser whose calls are counted, and whose first estimate of a step is kept for the callback.

    Attributes:
        evaluations: network evaluations of one image, both guidance branches counted.
        first: the first estimate since it was last set to None.
    """

    def __init__(self, denoise: Callable[[mx.array, float], mx.array]) -> None:
        self._denoise = denoise
        most: int = getattr(denoise, "evaluations", 1)
        self._cost: Callable[[float], int] = getattr(denoise, "evaluations_at", lambda sigma: most)
        self.evaluations = 0
        self.first: mx.array | None = None

    def __call__(self, x: mx.array, sigma: float) -> mx.array:
        self.evaluations += self._cost(sigma)
        denoised = self._denoise(x, sigma)
        if self.first is None:
            self.first = denoised
        return denoised
