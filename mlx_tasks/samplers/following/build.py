"""From a config to a plan: which classes and keys are followed, and what a key that is absent means."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.samplers.following import flow_and_edm
from mlx_tasks.samplers.following import variance_preserving as vp
from mlx_tasks.samplers.following.levels import RESHAPED
from mlx_tasks.samplers.following.plan import Plan
from mlx_tasks.samplers.following.pndm import pndm
from mlx_tasks.samplers.following.values import check_values

logger = logging.getLogger(__name__)

ANY = None
"""In place of a key's followed values: whatever it holds is followed, or means nothing while what it belongs to is
off."""

Keys = Mapping[str, tuple[Any, ...] | None]
"""Key -> the values that are followed, or ANY."""


def _any(*names: str) -> Keys:
    return dict.fromkeys(names, ANY)


_TABLE: Keys = _any("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
_CLIPPING: Keys = _any("clip_sample", "clip_sample_range")
_THRESHOLD: Keys = _any("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
_SHAPES: Keys = _any(*RESHAPED)
_FALLING: Keys = _any("solver_order", "lower_order_final", "final_sigmas_type", "algorithm_type", "solver_type")
_SPACING: Keys = _any("timestep_spacing", "steps_offset")
_ZERO_SNR: Keys = _any("rescale_betas_zero_snr")
_NO_FLOW: Keys = {
    "use_flow_sigmas": (False,),
    **_any("flow_shift", "time_shift_type"),
    "use_dynamic_shifting": (False,),
}
_VP: Keys = {**_TABLE, **_any("trained_betas")}
_EDM: Keys = {
    **_any("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho", "num_train_timesteps", "final_sigmas_type"),
    "prediction_type": ("epsilon", "v_prediction"),
}


@dataclass(frozen=True)
class Followed:
    """One class of scheduler.

    Attributes:
        build: (its noise schedule or None, all its keys, steps, eta, mu) -> the plan.
        keys: what is followed.
        defaults: what an absent key means.
        discrete: whether it has a variance-preserving table.
    """

    build: Callable[[Any, Mapping[str, Any], int, float, float | None], Plan]
    keys: Keys
    defaults: Mapping[str, Any]
    discrete: bool = True


def _vp(build: Callable[[NoiseSchedule, Mapping[str, Any], int, float], Plan], keys: Keys, **defaults: Any) -> Followed:
    table = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}
    shared = {"num_train_timesteps": 1000, "steps_offset": 0, "timestep_spacing": "linspace"}
    return Followed(lambda s, v, n, eta, mu: build(s, v, n, eta), {**_VP, **keys}, {**table, **shared, **defaults})


def _euler(solver: str, keys: Keys, **defaults: Any) -> Followed:
    return _vp(lambda s, v, n, eta: vp.euler(s, v, n, solver), {**_SPACING, **keys}, **defaults)


def _flow(build: Callable[[Mapping[str, Any], int, float, float | None], Plan], keys: Keys) -> Followed:
    defaults = {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    }
    followed = {**_any("num_train_timesteps", "shift"), **keys}
    return Followed(lambda s, v, n, eta, mu: build(v, n, eta, mu), followed, defaults, discrete=False)


def _edm(solver: str, keys: Keys, options: Callable[[Mapping[str, Any]], dict[str, Any]], **more: Any) -> Followed:
    defaults = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0}
    defaults |= {"num_train_timesteps": 1000, "prediction_type": "epsilon", "final_sigmas_type": "zero", **more}
    return Followed(
        lambda s, v, n, eta, mu: flow_and_edm.edm(v, n, solver, options(v)), {**_EDM, **keys}, defaults, discrete=False
    )


_ORDERS: dict[str, Any] = {"solver_order": 2, "lower_order_final": True}

CLASSES: dict[str, Followed] = {
    "DDIMScheduler": _vp(
        vp.ddim,
        {**_SPACING, **_CLIPPING, **_THRESHOLD, **_ZERO_SNR, **_any("set_alpha_to_one")},
        timestep_spacing="leading",
        clip_sample=True,
        set_alpha_to_one=True,
    ),
    "DDPMScheduler": _vp(
        vp.ddpm,
        {
            **_SPACING,
            **_CLIPPING,
            **_THRESHOLD,
            **_ZERO_SNR,
            "variance_type": ("fixed_small", "fixed_large"),
        },
        timestep_spacing="leading",
        clip_sample=True,
        variance_type="fixed_small",
    ),
    "PNDMScheduler": _vp(
        pndm,
        {**_SPACING, **_any("skip_prk_steps", "set_alpha_to_one")},
        timestep_spacing="leading",
        skip_prk_steps=False,
        set_alpha_to_one=False,
    ),
    "LCMScheduler": _vp(
        vp.lcm,
        {
            **_SPACING,
            **_CLIPPING,
            **_THRESHOLD,
            **_ZERO_SNR,
            **_any("original_inference_steps", "timestep_scaling", "set_alpha_to_one"),
        },
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        original_inference_steps=50,
        timestep_scaling=10.0,
        clip_sample=False,
    ),
    "EulerDiscreteScheduler": _euler(
        "ddim",
        {
            **_SHAPES,
            **_ZERO_SNR,
            "final_sigmas_type": ("zero",),
            "interpolation_type": ("linear",),
            "timestep_type": ("discrete",),
            "sigma_min": (None,),
            "sigma_max": (None,),
        },
    ),
    "EulerAncestralDiscreteScheduler": _euler("ddpm", _ZERO_SNR),
    "HeunDiscreteScheduler": _euler("heun", {**_SHAPES, **_CLIPPING}, beta_start=0.00085, beta_end=0.012),
    "DPMSolverMultistepScheduler": _vp(
        vp.dpm,
        {
            **_SPACING,
            **_SHAPES,
            **_FALLING,
            **_THRESHOLD,
            **_ZERO_SNR,
            **_NO_FLOW,
            **_any("use_flow_sigmas", "euler_at_final", "lambda_min_clipped"),
            "use_lu_lambdas": (False,),
            "variance_type": (None,),
        },
        **_ORDERS,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
        euler_at_final=False,
        lambda_min_clipped=-math.inf,
    ),
    "DPMSolverSinglestepScheduler": _vp(
        vp.singlestep,
        {
            **_SHAPES,
            **_FALLING,
            **_THRESHOLD,
            **_NO_FLOW,
            **_any("lambda_min_clipped"),
            "variance_type": (None,),
        },
        solver_order=2,
        lower_order_final=False,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
        lambda_min_clipped=-math.inf,
    ),
    "UniPCMultistepScheduler": _vp(
        vp.unipc,
        {
            **_SPACING,
            **_SHAPES,
            **_THRESHOLD,
            **_ZERO_SNR,
            **_NO_FLOW,
            **_any("solver_order", "lower_order_final", "final_sigmas_type"),
            "solver_type": ("bh1", "bh2"),
            "predict_x0": (True,),
            "disable_corrector": ([],),
            "solver_p": (None,),
            "sigma_min": (None,),
            "sigma_max": (None,),
            "shift_terminal": (None,),
        },
        **_ORDERS,
        solver_type="bh2",
        final_sigmas_type="zero",
    ),
    "DEISMultistepScheduler": _vp(
        vp.deis,
        {
            **_SPACING,
            **_SHAPES,
            **_THRESHOLD,
            **_NO_FLOW,
            **_any("solver_order", "lower_order_final"),
            "algorithm_type": ("deis",),
            "solver_type": ("logrho",),
        },
        **_ORDERS,
    ),
    "FlowMatchEulerDiscreteScheduler": _flow(
        flow_and_edm.flow_match_euler,
        {
            **_SHAPES,
            **_any("use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
            **_any("shift_terminal", "stochastic_sampling"),
            "time_shift_type": ("exponential", "linear"),
            "invert_sigmas": (False,),
        },
    ),
    "FlowMatchHeunDiscreteScheduler": _flow(lambda v, n, eta, mu: flow_and_edm.flow_match(v, n, "flow_heun", mu), {}),
    "EDMEulerScheduler": _edm("ddim", {}, lambda v: {}),
    "EDMDPMSolverMultistepScheduler": _edm(
        "dpmpp_2m",
        {
            **_THRESHOLD,
            **_any("solver_order", "lower_order_final"),
            "algorithm_type": ("dpmsolver++",),
            "solver_type": ("midpoint",),
            "euler_at_final": (False,),
        },
        lambda v: {"order": int(v["solver_order"]), "lower_order_final": bool(v["lower_order_final"])},
        **_ORDERS,
    ),
}


def plan_from_config(config: Mapping[str, Any], num_steps: int, eta: float = 0.0, mu: float | None = None) -> Plan:
    """The run of `num_steps` steps that a diffusers scheduler with this config takes.

    Absent keys take diffusers' defaults. Keys that the class does not have (SDXL's Euler is given a `clip_sample`)
    mean nothing in diffusers either: they are logged, and named by the plan's `idle`.
    eta: of DDIM; mu: of flow matching with dynamic shifting.
    Raises: DataError naming a class (the known ones: CLASSES) or a key and value that are not followed, or steps that
        do not fit.
    """
    name = str(config.get("_class_name", ""))
    if name not in CLASSES:
        raise DataError(f"scheduler class {name!r} is not supported; there are: {', '.join(CLASSES)}")
    if num_steps < 1:
        raise DataError(f"a run takes at least 1 step, got {num_steps}")
    followed = CLASSES[name]
    given = {key: value for key, value in config.items() if key in followed.keys}
    for key, value in given.items():
        allowed = followed.keys[key]
        if allowed is not None and not any(value == one and type(value) is type(one) for one in allowed):
            words = " or ".join(repr(one) for one in allowed)
            raise DataError(f"scheduler_config {key}={value!r:.80} of {name} is not supported: only {words} is")
    values = {**followed.defaults, **given}
    check_values({key: value for key, value in values.items() if followed.keys.get(key) is ANY})
    idle = tuple(key for key in config if key not in followed.keys and not key.startswith("_"))
    if idle:
        logger.warning(
            "scheduler=%s passed-over='%s': the class has no such keys, in diffusers too", name, ", ".join(idle)
        )
    if sum(bool(values.get(key)) for key in RESHAPED) > 1:
        raise DataError(f"only one of {', '.join(RESHAPED)} may be on")
    total = int(values["num_train_timesteps"])
    if num_steps > total:
        raise DataError(f"num_steps must be at most {total}, got {num_steps}")
    flow = bool(values.get("use_flow_sigmas"))  # its networks predict a velocity, of which the table knows nothing
    table = {key: values[key] for key in (*_VP, *_ZERO_SNR) if key in values}
    schedule = NoiseSchedule.from_config(table) if followed.discrete and not flow else None
    return replace(followed.build(schedule, values, num_steps, eta, mu), idle=idle)
