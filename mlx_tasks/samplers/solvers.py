"""The solvers by name: a new one is a file with `init`, `step` and `calls`, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from types import ModuleType
from typing import Any

import mlx.core as mx

from mlx_tasks.samplers import (
    consistency,
    ddim,
    deis,
    dpm_multistep,
    dpm_sde,
    dpm_singlestep,
    edm_stochastic,
    flow_heun,
    heun,
    ipndm,
    learned,
    pndm,
    unipc,
)


@dataclass(frozen=True)
class Solver:
    """One method for dx/dsigma = (x - denoised) / sigma, or for the SDE with the same marginals.

    Attributes:
        order: how the error falls with the step: as step**order; None for those that draw noise.
        init: (x, sigmas) -> state.
        step: (denoise, x, state, sigma, sigma_next, key) -> (x at sigma_next, state).
        calls: num_steps -> denoiser calls of a run that ends at sigma 0.
        options: the method's own numbers, by name.
        diffusers: whether a bundle can name a diffusers scheduler that takes the same steps on any grid.
    """

    order: int | None
    init: Callable[[mx.array, Sequence[float]], Any]
    step: Callable[..., tuple[mx.array, Any]]
    calls: Callable[[int], int]
    options: dict[str, Any] = field(default_factory=dict)
    diffusers: bool = False

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise, and so needs a key."""
        return self.order is None

    def steps_within(self, calls: int) -> int:
        """Most steps that cost at most this many calls.  Raises: ValueError if not even one fits."""
        if calls < self.calls(1):
            raise ValueError(f"a run takes at least {self.calls(1)} denoiser calls, got {calls}")
        steps = calls
        while self.calls(steps) > calls:
            steps -= 1
        return steps


def _row(order: int | None, module: ModuleType, diffusers: bool = False, /, **options: Any) -> Solver:
    step = partial(module.step, **options) if options else module.step
    return Solver(order, module.init, step, module.calls, options, diffusers)


SOLVERS = {
    "ddim": _row(1, ddim, True),
    "heun": _row(2, heun, True),
    "flow_heun": _row(2, flow_heun),
    "dpm_2s": _row(2, dpm_singlestep, order=2, predict="eps"),
    "dpm_3s": _row(3, dpm_singlestep, order=3, predict="eps"),
    "dpmpp_2s": _row(2, dpm_singlestep, order=2),
    "dpmpp_3s": _row(3, dpm_singlestep, order=3),
    "dpm_2m": _row(2, dpm_multistep, order=2, predict="eps"),
    "dpm_3m": _row(2, dpm_multistep, order=3, predict="eps"),
    "dpmpp_2m": _row(2, dpm_multistep, True, order=2),
    "dpmpp_3m": _row(2, dpm_multistep, True, order=3),
    "dpmpp_3m_taylor": _row(3, dpm_multistep, order=3, bend_weight=2.0),
    "unipc_2": _row(3, unipc, order=2),
    "unipc_3": _row(4, unipc, order=3),
    "deis_2": _row(2, deis, order=2),
    "deis_3": _row(3, deis, order=3),
    "ipndm": _row(2, ipndm, order=4),
    "pndm": _row(2, pndm),
    "learned": _row(2, learned),
    "ddpm": _row(None, ddim, eta=1.0),
    "edm_stochastic": _row(None, edm_stochastic),
    "dpmpp_sde": _row(None, dpm_sde, order=1),
    "dpmpp_2m_sde": _row(None, dpm_sde, order=2),
    "dpmpp_3m_sde": _row(None, dpm_sde, order=3),
    "consistency": _row(None, consistency),
}

ALIASES = {
    "euler": "ddim",
    "flow_euler": "ddim",
    "euler_ancestral": "ddpm",
    "lcm": "consistency",
    "dpmpp_1": "ddim",
}
"""Other names of the same steps in this frame."""


def find_solver(name: str, **options: Any) -> Solver:
    """The named solver, with its own numbers changed by `options` (eta, order, churn ...).

    Raises: ValueError listing the names, or the options that the solver has.
    """
    name = ALIASES.get(name, name)
    if name not in SOLVERS:
        raise ValueError(f"no solver named {name!r}; there are: {', '.join((*SOLVERS, *ALIASES))}")
    solver = SOLVERS[name]
    if not options:
        return solver
    known = [p.name for p in signature(solver.step).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    merged = {**solver.options, **options}
    noisy = solver.stochastic or bool(options.get("eta"))
    return replace(solver, step=partial(solver.step, **options), options=merged, order=None if noisy else solver.order)
