"""The solvers by name: a new one is a file with `init`, `step` and `calls`, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_tasks.samplers import ddim, dpmpp_2m, heun


@dataclass(frozen=True)
class Solver:
    """One method for dx/dsigma = (x - denoised) / sigma.

    Attributes:
        order: how the error falls with the step: as step**order.
        init: (x, sigmas) -> state.
        step: (denoise, x, state, sigma, sigma_next, key) -> (x at sigma_next, state).
        calls: num_steps -> denoiser calls of a run that ends at sigma 0.
    """

    order: int
    init: Callable[[mx.array, Sequence[float]], Any]
    step: Callable[..., tuple[mx.array, Any]]
    calls: Callable[[int], int]

    def steps_within(self, calls: int) -> int:
        """Most steps that cost at most this many calls.  Raises: ValueError if not even one fits."""
        if calls < self.calls(1):
            raise ValueError(f"a run takes at least {self.calls(1)} denoiser calls, got {calls}")
        steps = calls
        while self.calls(steps) > calls:
            steps -= 1
        return steps


SOLVERS = {
    "ddim": Solver(1, ddim.init, ddim.step, ddim.calls),
    "heun": Solver(2, heun.init, heun.step, heun.calls),
    "dpmpp_2m": Solver(2, dpmpp_2m.init, dpmpp_2m.step, dpmpp_2m.calls),
}


def find_solver(name: str) -> Solver:
    """The named solver.  Raises: ValueError listing the names."""
    if name not in SOLVERS:
        raise ValueError(f"no solver named {name!r}; there are: {', '.join(SOLVERS)}")
    return SOLVERS[name]
