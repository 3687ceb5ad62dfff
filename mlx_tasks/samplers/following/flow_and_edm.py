"""Plans after diffusers' flow-matching and EDM schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_tasks.diffusion.frames import EdmFrame, FlowFrame
from mlx_tasks.errors import DataError
from mlx_tasks.samplers.following.levels import reshaped
from mlx_tasks.samplers.following.plan import Plan, adjusting, clipping, unit_start


def flow_plan(frame: FlowFrame, times: np.ndarray, solver: str, options: dict[str, Any] | None = None) -> Plan:
    """A run along flow times (n,) in (0, 1] and to 0, from noise that is taken as it is at the first of them."""
    sigmas = frame.sigma_from_flow(times)
    told = tuple(float(t) * frame.num_train_timesteps for t in times)
    return Plan(frame, (*map(float, sigmas), 0.0), told, solver, options or {}, 1.0 + float(sigmas[0]))


def flow_match(values: Mapping[str, Any], n: int, solver: str, mu: float | None) -> Plan:
    """FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler.

    The ends of diffusers' range are shifted already when its grid is shifted.
    """
    total, shift = int(values["num_train_timesteps"]), float(values["shift"])
    dynamic = bool(values.get("use_dynamic_shifting"))
    if dynamic and mu is None:
        raise DataError("use_dynamic_shifting=True needs mu, the shift of this resolution: plan_from_config(..., mu=)")
    frame = FlowFrame(total, 1.0 if dynamic else shift)
    ends = frame.shifted(np.array([1.0, 1.0 / total]).astype(np.float32).astype(np.float64))
    times = np.linspace(ends[0], ends[1], n)
    if dynamic:
        strength = math.exp(float(mu or 0.0)) if values["time_shift_type"] == "exponential" else float(mu or 0.0)
        times = strength / (strength + 1.0 / times - 1.0)
    else:
        times = frame.shifted(times)
    if values.get("shift_terminal"):
        times = 1.0 - (1.0 - times) / ((1.0 - times[-1]) / (1.0 - float(values["shift_terminal"])))
    other = reshaped(values, float(times[-1]), float(times[0]), n)
    return flow_plan(frame, times if other is None else other, solver)


def flow_match_euler(values: Mapping[str, Any], n: int, eta: float, mu: float | None) -> Plan:
    """Euler along the flow, or with fresh noise at every step (`stochastic_sampling`)."""
    return flow_match(values, n, "consistency" if values["stochastic_sampling"] else "flow_euler", mu)


def edm(values: Mapping[str, Any], n: int, solver: str, options: dict[str, Any]) -> Plan:
    """EDMEulerScheduler and EDMDPMSolverMultistepScheduler."""
    frame = EdmFrame(
        float(values["sigma_min"]),
        float(values["sigma_max"]),
        float(values["sigma_data"]),
        float(values["rho"]),
        values["prediction_type"],
    )
    levels = frame.sigmas(n)[:-1]
    if values["sigma_schedule"] == "exponential":
        levels = tuple(np.exp(np.linspace(math.log(frame.sigma_max), math.log(frame.sigma_min), n)).tolist())
    if values["final_sigmas_type"] == "sigma_min":
        raise DataError("final_sigmas_type='sigma_min' is not supported for this class: its last step goes nowhere")
    told = tuple(float(frame.t_from_sigma(sigma)) for sigma in levels)
    start = unit_start(frame.sigma_max)
    return Plan(frame, (*levels, 0.0), told, solver, options, start, 1.0, adjusting(clipping(values)))
