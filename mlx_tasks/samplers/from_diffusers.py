"""A diffusers scheduler_config.json as a run of our samplers: the same levels, told times, steps, start and end.

Every key of a supported class is either followed or refused by name; nothing is quietly left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.samplers.driver import Callback, Samples, sample

_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
_RESHAPED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "use_lu_lambdas": (False,),
    "variance_type": (None, "fixed_small"),
    "solver_type": ("midpoint", "bh1", "bh2", "logrho"),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (None,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "deis"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "shift_terminal": (None,),
}
"""Keys of which only these values are followed."""
_IDLE = (
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
    "clip_sample_range",
    "steps_offset",
    "clip_sample",
    "set_alpha_to_one",
    "solver_order",
    "lower_order_final",
    "euler_at_final",
    "lambda_min_clipped",
    *_RESHAPED,
)
"""Keys that are followed, or that mean nothing while the ones they belong to are off."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        schedule: the noise schedule the network was trained with.
        sigmas: falling levels, one more than there are steps; the last may be above 0.
        timesteps: what the network is told at each level but the last.
        solver, options: as `sample` takes them.
        start: the run begins at start * noise.
        end: its result is multiplied by this: diffusers' frame, where the last level is above 0.
        clip: estimates are clipped to [-clip, clip], or None.
    """

    schedule: NoiseSchedule
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    start: float = 1.0
    end: float = 1.0
    clip: float | None = None

    @property
    def times(self) -> Mapping[float, float]:
        """Level -> timestep, for `network_denoiser(..., times=plan.times)`."""
        return dict(zip(self.sigmas, self.timesteps, strict=False))

    def sample(
        self,
        denoise: Callable[[mx.array, float], mx.array],
        noise: mx.array,
        key: mx.array | None = None,
        callback: Callback | None = None,
    ) -> Samples:
        """The images that diffusers' scheduler draws from the same noise (B, H, W, C), to rounding."""

        def clipped(x: mx.array, sigma: float) -> mx.array:
            estimate = denoise(x, sigma)
            return estimate if self.clip is None else mx.clip(estimate, -self.clip, self.clip)

        counted = getattr(denoise, "evaluations", 1)
        drawn = sample(clipped, noise, self.sigmas, self.solver, key, callback, self.options, start=self.start)
        return Samples(drawn.images * self.end, drawn.nfe * counted)


def plan_from_config(config: Mapping[str, Any], num_steps: int, eta: float = 0.0) -> Plan:
    """The run of `num_steps` steps that a diffusers scheduler with this config takes.

    Classes: DDIMScheduler (with eta), DDPMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler.  Absent keys
    take diffusers' defaults.
    Raises: DataError naming a class or a key and value that are not followed, or steps that do not fit.
    """
    name = str(config.get("_class_name", ""))
    if name not in _CLASSES:
        raise DataError(f"scheduler class {name!r} is not supported; there are: {', '.join(_CLASSES)}")
    if num_steps < 1:
        raise DataError(f"a run takes at least 1 step, got {num_steps}")
    defaults, build = _CLASSES[name]
    known = {*_SCHEDULE, *_NEUTRAL, *_IDLE}
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key not in known:
            raise DataError(f"scheduler_config key {key!r} of {name} is not supported")
        if key in _NEUTRAL and value not in _NEUTRAL[key]:
            allowed = " or ".join(repr(one) for one in _NEUTRAL[key])
            raise DataError(f"scheduler_config {key}={value!r:.80} of {name} is not supported: only {allowed} is")
    values = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}
    values |= {"steps_offset": 0, "timestep_spacing": "linspace", **defaults, **config}
    if sum(bool(values.get(key)) for key in _RESHAPED) > 1:
        raise DataError(f"only one of {', '.join(_RESHAPED)} may be on")
    schedule = NoiseSchedule.from_config({key: values[key] for key in _SCHEDULE if key in values})
    if num_steps > schedule.num_train_timesteps:
        raise DataError(f"num_steps must be at most {schedule.num_train_timesteps}, got {num_steps}")
    return build(schedule, values, num_steps, eta)


def _ddim(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float, *, markov: bool = False) -> Plan:
    """DDIM, and DDPM with its noise: steps of T // n timesteps, whatever the spacing."""
    total = schedule.num_train_timesteps
    stride = total // n
    times = _spaced(values, total, n).round().astype(int)
    if times[0] >= total or np.any(times[:-1] - stride != times[1:]):
        raise DataError(
            f"{n} steps of {values['timestep_spacing']} spacing leave diffusers' own grid, which goes by {stride} "
            f"timesteps: take a number of steps that divides {total}, or 'leading' spacing"
        )
    before = times[-1] - stride
    last = float(schedule.sigmas[before]) if before >= 0 else 0.0
    if before < 0 and not values.get("set_alpha_to_one", True):
        last = float(schedule.sigmas[0])
    levels = [*(float(schedule.sigmas[t]) for t in times)]
    sigmas = (*levels, last) if last < levels[-1] else tuple(levels)  # a step that goes nowhere is left out
    bound = float(values.get("clip_sample_range", 1.0)) if values["clip_sample"] else None
    solver, options = ("ddpm", {}) if markov else ("ddim", {"eta": eta, "clip": bound})
    return Plan(
        schedule,
        sigmas,
        tuple(float(t) for t in times),
        solver,
        options,
        math.sqrt(1.0 + levels[0] ** 2),
        1.0 / math.sqrt(1.0 + sigmas[-1] ** 2),
        bound if markov else None,
    )


def _ddpm(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    return _ddim(schedule, {**values, "set_alpha_to_one": True}, n, eta, markov=True)


def _euler(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, solver: str) -> Plan:
    """Euler, ancestral Euler and Heun: n levels, a final 0, and a start of their own."""
    total = schedule.num_train_timesteps
    times = _spaced(values, total, n)
    sigmas = np.interp(times, np.arange(total), schedule.sigmas)
    reshaped = _reshaped(values, float(sigmas[-1]), float(sigmas[0]), n)
    if reshaped is not None:
        sigmas, times = reshaped, schedule.t_from_sigma(reshaped)
    if values.get("final_sigmas_type") == "sigma_min":
        raise DataError("final_sigmas_type='sigma_min' is not supported for this class: its last step goes nowhere")
    first = float(sigmas[0])
    start = math.sqrt(1.0 + first**2) if values["timestep_spacing"] == "leading" else first
    clip = float(values.get("clip_sample_range", 1.0)) if values.get("clip_sample") else None
    return Plan(schedule, (*map(float, sigmas), 0.0), tuple(map(float, times)), solver, {}, start, 1.0, clip)


def _multistep(
    schedule: NoiseSchedule, values: Mapping[str, Any], n: int, solver: str, options: dict[str, Any]
) -> Plan:
    """DPM-Solver, UniPC and DEIS: whole timesteps, or Karras, exponential and beta levels over the whole schedule."""
    total = schedule.num_train_timesteps
    last = total
    if "lambda_min_clipped" in values:
        half_log_snr = -np.log(schedule.sigmas[::-1])
        last = total - int(np.searchsorted(half_log_snr, float(values["lambda_min_clipped"])))
    times = _spaced(values, total, n, last, spare=1).round().astype(int)
    zero = values.get("final_sigmas_type", "sigma_min") == "zero"
    reshaped = _reshaped(values, float(schedule.sigmas[0]), float(schedule.sigmas[-1]), n)
    if reshaped is None:
        if np.any(np.diff(times) >= 0) or times[0] >= total or times[-1] < 0:
            raise DataError(f"{n} steps of {values['timestep_spacing']} spacing give timesteps {times.tolist()}")
        sigmas = np.interp(times, np.arange(total), schedule.sigmas)
    else:
        if not zero:
            raise DataError(
                "Karras, exponential and beta levels are supported with final_sigmas_type='zero' alone: else the last "
                "step goes nowhere"
            )
        sigmas, exact = reshaped, _times_as_diffusers(schedule, reshaped)
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
        math.sqrt(1.0 + levels[0] ** 2),
        1.0 / math.sqrt(1.0 + path[-1] ** 2),
    )


def _times_as_diffusers(schedule: NoiseSchedule, sigmas: np.ndarray) -> np.ndarray:
    """Fractional timesteps by diffusers' float32 table, whose rounding decides what cutting to whole ones gives."""
    kept = schedule.alpha_bar.astype(np.float32)
    table = np.log(((np.float32(1.0) - kept) / kept) ** np.float32(0.5))
    return np.interp(np.log(sigmas), table.astype(np.float64), np.arange(len(table)))


def _dpm(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    algorithm, order = values["algorithm_type"], int(values["solver_order"])
    if values["solver_type"] != "midpoint":
        raise DataError(f"solver_type={values['solver_type']!r} is not supported: only 'midpoint' is")
    if not 1 <= order <= 3:
        raise DataError(f"solver_order must be 1, 2 or 3, got {order}")
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
    if algorithm.startswith("sde"):
        return _multistep(schedule, values, n, "dpmpp_sde", falling)
    predict = "eps" if algorithm == "dpmsolver" else "x0"
    return _multistep(schedule, values, n, "dpmpp_2m", {**falling, "predict": predict})


def _unipc(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    order = int(values["solver_order"])
    if not 1 <= order <= 3:
        raise DataError(f"solver_order must be 1, 2 or 3, got {order}")
    if values["solver_type"] == "bh1" and values["final_sigmas_type"] == "zero":
        raise DataError("solver_type='bh1' needs final_sigmas_type='sigma_min': at 0 diffusers gives no numbers")
    options = {"order": order, "variant": values["solver_type"], "lower_order_final": bool(values["lower_order_final"])}
    return _multistep(schedule, values, n, "unipc_2", options)


def _deis(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    order = int(values["solver_order"])
    if not 1 <= order <= 3:
        raise DataError(f"solver_order must be 1, 2 or 3, got {order}")
    options = {"order": order, "lower_order_final": bool(values["lower_order_final"])}
    return _multistep(schedule, values, n, "deis_2", options)


def _spaced(values: Mapping[str, Any], total: int, n: int, last: int | None = None, *, spare: int = 0) -> np.ndarray:
    """(n,) falling timesteps of the spacing that is asked for; only linspace gives fractions.

    last: timesteps counted from the clean end that are used, all of them by default; spare: levels that the multistep
    schedulers lay out beyond n, at the clean end, and leave away.
    """
    used, count = total if last is None else last, n + spare
    match values["timestep_spacing"]:
        case "leading":
            times = np.arange(count) * float(used // count) + int(values["steps_offset"])
            return times[::-1][:n]
        case "linspace":
            return np.linspace(0, used - 1, count)[::-1][:n]
        case _:
            return np.arange(used, 0, -total / n).round() - 1.0


def _reshaped(values: Mapping[str, Any], low: float, high: float, n: int) -> np.ndarray | None:
    """Karras', exponential or beta levels from high to low, or None where none is asked for."""
    share = np.linspace(0.0, 1.0, n)
    if values.get("use_karras_sigmas"):
        return (high ** (1 / 7) + share * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    if values.get("use_exponential_sigmas"):
        return np.exp(np.linspace(math.log(high), math.log(low), n))
    if values.get("use_beta_sigmas"):
        from scipy.stats import beta

        return low + beta.ppf(1.0 - share, 0.6, 0.6) * (high - low)
    return None


Build = Callable[[NoiseSchedule, Mapping[str, Any], int, float], Plan]
_FALLING = {"solver_order": 2, "lower_order_final": True}
_CLASSES: dict[str, tuple[dict[str, Any], Build]] = {
    "DDIMScheduler": ({"timestep_spacing": "leading", "clip_sample": True, "set_alpha_to_one": True}, _ddim),
    "DDPMScheduler": ({"timestep_spacing": "leading", "clip_sample": True}, _ddpm),
    "EulerDiscreteScheduler": ({}, lambda s, v, n, _: _euler(s, v, n, "ddim")),
    "EulerAncestralDiscreteScheduler": ({}, lambda s, v, n, _: _euler(s, v, n, "ddpm")),
    "HeunDiscreteScheduler": ({"beta_start": 0.00085, "beta_end": 0.012}, lambda s, v, n, _: _euler(s, v, n, "heun")),
    "DPMSolverMultistepScheduler": (
        {
            **_FALLING,
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "final_sigmas_type": "zero",
            "euler_at_final": False,
            "lambda_min_clipped": -math.inf,
        },
        _dpm,
    ),
    "UniPCMultistepScheduler": ({**_FALLING, "solver_type": "bh2", "final_sigmas_type": "zero"}, _unipc),
    "DEISMultistepScheduler": ({**_FALLING}, _deis),
}
"""Class -> (its defaults, how its run is made)."""
