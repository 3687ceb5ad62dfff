"""Plans after diffusers' variance-preserving schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks.diffusion.frames import FlowFrame
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.samplers.following.flow_and_edm import flow_plan
from mlx_tasks.samplers.following.levels import RESHAPED, float32_times, reshaped, spaced, table
from mlx_tasks.samplers.following.plan import Plan, adjusting, clipping, unit_start

_PURE_NOISE = 1e7
"""Noise level of a last timestep whose SNR is 0, for the schedulers that take it as exactly that."""


def whole_steps(schedule: NoiseSchedule, values: Mapping[str, Any], n: int) -> tuple[np.ndarray, float]:
    """Timesteps (n,) that go by T // n, and the level that the last of them leads to.

    Raises: DataError where the spacing that is asked for leaves that grid.
    """
    total = schedule.num_train_timesteps
    stride = total // n
    times = spaced(values, total, n).round().astype(int)
    if times[0] >= total or np.any(times[:-1] - stride != times[1:]):
        raise DataError(
            f"{n} steps of {values['timestep_spacing']} spacing leave diffusers' own grid, which goes by {stride} "
            f"timesteps: take a number of steps that divides {total}, or 'leading' spacing"
        )
    before = times[-1] - stride
    if before >= 0:
        return times, float(schedule.sigmas[before])
    return times, 0.0 if values.get("set_alpha_to_one", True) else float(schedule.sigmas[0])


def ddim(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float, *, markov: bool = False) -> Plan:
    """DDIM, and DDPM with its noise: steps of T // n timesteps, whatever the spacing."""
    total = schedule.num_train_timesteps
    times, last = whole_steps(schedule, values, n)
    levels = [*(float(schedule.sigmas[t]) for t in times)]
    if schedule.rescale_betas_zero_snr and times[0] == total - 1:
        levels[0] = _PURE_NOISE
    large = values.get("variance_type") == "fixed_large"
    if large and times[-1] > 0:
        raise DataError(
            "variance_type='fixed_large' is supported where the last timestep is 0: elsewhere diffusers adds noise to "
            "the finished image; take 'leading' spacing with steps_offset 0"
        )
    sigmas = path_to(levels, last)
    clip = clipping(values)
    solver, options = ("ddpm", {"large": large}) if markov else ("ddim", {"eta": eta, "clip": clip})
    return Plan(
        schedule,
        sigmas,
        tuple(float(t) for t in times),
        solver,
        options,
        unit_start(levels[0]),
        1.0 / unit_start(sigmas[-1]),
        adjusting(clip) if markov else None,
    )


def path_to(levels: list[float], last: float) -> tuple[float, ...]:
    """The levels and where they end; a last step that goes nowhere is left out.  Raises: DataError if none is left."""
    path = (*levels, last) if last < levels[-1] else tuple(levels)
    if len(path) < 2:
        raise DataError("the only step goes nowhere: take more steps, or set_alpha_to_one")
    return path


def ddpm(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    return ddim(schedule, {**values, "set_alpha_to_one": True}, n, eta, markov=True)


def euler(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, solver: str) -> Plan:
    """Euler, ancestral Euler and Heun: n levels, a final 0, and a start of their own."""
    total = schedule.num_train_timesteps
    times = spaced(values, total, n)
    if times[0] > total:  # diffusers keeps such timesteps all at the last level
        raise DataError(f"steps_offset must keep {n} steps within {total} timesteps, the first would be {times[0]:g}")
    sigmas = np.interp(times, np.arange(total), table(schedule))
    other = reshaped(values, float(sigmas[-1]), float(sigmas[0]), n)
    if other is not None:
        sigmas, times = other, schedule.t_from_sigma(other)
    first = float(sigmas[0])
    start = unit_start(first) if values["timestep_spacing"] == "leading" else first
    adjust = adjusting(clipping(values))
    return Plan(schedule, (*map(float, sigmas), 0.0), tuple(map(float, times)), solver, {}, start, 1.0, adjust)


def _multistep(
    schedule: NoiseSchedule, values: Mapping[str, Any], n: int, solver: str, options: dict[str, Any]
) -> Plan:
    """DPM-Solver, UniPC and DEIS: whole timesteps, or Karras, exponential and beta levels over the whole schedule."""
    total = schedule.num_train_timesteps
    last = total
    if "lambda_min_clipped" in values:
        half_log_snr = -np.log(schedule.sigmas[::-1])
        last = total - int(np.searchsorted(half_log_snr, float(values["lambda_min_clipped"])))
    times = spaced(values, total, n, last, spare=1).round().astype(int)
    zero = values.get("final_sigmas_type", "sigma_min") == "zero"
    other = reshaped(values, float(schedule.sigmas[0]), float(table(schedule)[-1]), n)
    if other is None:
        if np.any(np.diff(times) >= 0) or times[0] >= total or times[-1] < 0:
            raise DataError(f"{n} steps of {values['timestep_spacing']} spacing give timesteps {times.tolist()}")
        sigmas = np.interp(times, np.arange(total), table(schedule))
    else:
        if not zero:
            raise DataError(
                "Karras, exponential and beta levels are supported with final_sigmas_type='zero' alone: else the last "
                "step goes nowhere"
            )
        sigmas, exact = other, float32_times(schedule, other)
        round_them = values.get("use_karras_sigmas") and not (
            solver.startswith("dpm") and values["beta_schedule"] == "squaredcos_cap_v2"
        )
        times = (exact.round() if round_them else np.floor(exact)).astype(int)
        if len(set(times.tolist())) < n:
            raise DataError(
                f"{n} levels of this shape have only {len(set(times.tolist()))} whole timesteps, among which diffusers "
                "loses its place: take fewer steps, or another shape"
            )
    levels = [*map(float, sigmas)]
    end = 0.0 if zero else float(schedule.sigmas[0])
    path = (*levels, end) if end < levels[-1] else tuple(levels)
    return Plan(
        schedule,
        path,
        tuple(float(t) for t in times),
        solver,
        options,
        unit_start(levels[0]),
        1.0 / unit_start(path[-1]),
        adjusting(clipping(values)),
    )


def _order(values: Mapping[str, Any]) -> int:
    order = int(values["solver_order"])
    if not 1 <= order <= 3:
        raise DataError(f"solver_order must be 1, 2 or 3, got {order}")
    return order


def dpm(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    algorithm, order = values["algorithm_type"], _order(values)
    if values["solver_type"] != "midpoint":
        raise DataError(f"solver_type={values['solver_type']!r} is not supported: only 'midpoint' is")
    if algorithm.startswith("sde") and order == 3:
        raise DataError(
            "solver_order=3 of sde-dpmsolver++ is not supported: a factor of diffusers' formula does not vanish with "
            "the step (docs/samplers.md)"
        )
    if values["euler_at_final"] and values["final_sigmas_type"] != "zero":
        raise DataError(
            "euler_at_final=True is supported with final_sigmas_type='zero' alone, where it changes nothing"
        )
    if algorithm == "dpmsolver" and values["final_sigmas_type"] == "zero":
        raise DataError("algorithm_type='dpmsolver' needs final_sigmas_type='sigma_min', as in diffusers")
    falling = {"order": order, "lower_order_final": bool(values["lower_order_final"])}
    if values.get("use_flow_sigmas"):
        return _dpm_flow(values, n, falling)
    if algorithm.startswith("sde"):
        return _multistep(schedule, values, n, "dpmpp_sde", falling)
    predict = "eps" if algorithm == "dpmsolver" else "x0"
    return _multistep(schedule, values, n, "dpmpp_2m", {**falling, "predict": predict})


def _dpm_flow(values: Mapping[str, Any], n: int, options: dict[str, Any]) -> Plan:
    """DPM-Solver++ over a flow-matching network: the same steps, for they know only sigma."""
    if values["algorithm_type"] != "dpmsolver++" or values["final_sigmas_type"] != "zero":
        raise DataError("use_flow_sigmas=True is supported with 'dpmsolver++' and final_sigmas_type='zero' alone")
    if any(values.get(key) for key in RESHAPED) or values.get("thresholding"):
        raise DataError("use_flow_sigmas=True is supported without other levels and without thresholding")
    total = int(values.get("num_train_timesteps", 1000))
    frame = FlowFrame(total, float(values.get("flow_shift", 1.0)))
    times = frame.shifted(1.0 - np.linspace(1.0, 1.0 / total, n + 1))[::-1][:-1]
    plan = flow_plan(frame, times, "dpmpp_2m", options)
    return replace(plan, timesteps=tuple(float(int(t)) for t in plan.timesteps))


def unipc(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    order = _order(values)
    if values["solver_type"] == "bh1" and values["final_sigmas_type"] == "zero":
        raise DataError("solver_type='bh1' needs final_sigmas_type='sigma_min': at 0 diffusers gives no numbers")
    options = {"order": order, "variant": values["solver_type"], "lower_order_final": bool(values["lower_order_final"])}
    return _multistep(schedule, values, n, "unipc_2", options)


def deis(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    order = _order(values)
    options = {"order": order, "lower_order_final": bool(values["lower_order_final"])}
    return _multistep(schedule, values, n, "deis_2", options)


def singlestep(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    """DPM-Solver and DPM-Solver++ in groups, by diffusers' list of orders."""
    order, zero = _order(values), values["final_sigmas_type"] == "zero"
    if values["solver_type"] != "midpoint":
        raise DataError(f"solver_type={values['solver_type']!r} is not supported: only 'midpoint' is")
    if values["algorithm_type"] == "sde-dpmsolver++":
        raise DataError("algorithm_type='sde-dpmsolver++' of DPMSolverSinglestepScheduler is not supported")
    if values["algorithm_type"] == "dpmsolver" and zero:
        raise DataError("algorithm_type='dpmsolver' needs final_sigmas_type='sigma_min', as in diffusers")
    lower = bool(values["lower_order_final"]) or n % order != 0 or zero
    groups = _groups(n, order, lower)
    if zero:
        groups = [*groups[:-1], 1]
    predict = "eps" if values["algorithm_type"] == "dpmsolver" else "x0"
    options = {"order": order, "predict": predict, "groups": tuple(groups)}
    return _multistep(schedule, {**values, "timestep_spacing": "linspace"}, n, "dpmpp_2s", options)


def _groups(n: int, order: int, lower: bool) -> list[int]:
    """Orders of n intervals as DPMSolverSinglestepScheduler lays them out."""
    whole, rest = divmod(n, order)
    full = list(range(1, order + 1))
    if order == 1 or not lower:
        return full * whole
    if rest:
        return full * whole + full[:rest]
    return full * (whole - 1) + ([1, 2, 1] if order == 3 else [1, 1])


def lcm(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    """Multistep consistency with the boundary condition of latent consistency models (Luo et al. 2023, Eq. 9)."""
    total, original = schedule.num_train_timesteps, int(values["original_inference_steps"])
    if not n <= original <= total:
        raise DataError(f"n <= original_inference_steps <= {total} must hold, got {n} and {original}")
    origin = (np.arange(1, original + 1) * (total // original) - 1)[::-1]
    times = origin[np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)]
    levels = [float(schedule.sigmas[t]) for t in times]
    if schedule.rescale_betas_zero_snr and times[0] == total - 1:
        levels[0] = _PURE_NOISE
    scale, data = float(values["timestep_scaling"]), 0.5
    told, clip = dict(zip(levels, (float(t) * scale for t in times), strict=True)), clipping(values)

    def at_the_boundary(estimate: mx.array, x: mx.array, sigma: float) -> mx.array:
        t = told[sigma]
        skip, out = data**2 / (t**2 + data**2), t / math.sqrt(t**2 + data**2)
        return out * (estimate if clip is None else clip(estimate)) + (skip / unit_start(sigma)) * x

    return Plan(
        schedule,
        (*levels, 0.0),
        tuple(float(t) for t in times),
        "consistency",
        {},
        unit_start(levels[0]),
        1.0,
        at_the_boundary,
    )
