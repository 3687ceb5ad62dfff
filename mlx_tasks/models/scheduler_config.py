"""The diffusers scheduler that takes the same steps as one of our samplers: its scheduler_config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_tasks.diffusion.betas import betas_from_alpha_bar
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.samplers.solvers import SOLVERS

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Sampler

_SHARED = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "prediction_type",
    "steps_offset",
)


def scheduler_config(schedule: NoiseSchedule, sampler: Sampler) -> dict[str, Any]:
    """Keys of a scheduler_config.json with which diffusers draws the sampler's images from the same noise.

    DDIM on the uniform trailing grid is a DDIMScheduler and needs only `set_timesteps(n)`, where n divides T: it
    steps by T // n, which drifts off the grid otherwise. Every other grid of DDIM, and DPM-Solver++ multistep, is a
    DPMSolverMultistepScheduler of order 1 to 3, and Heun a HeunDiscreteScheduler; those two take
    `set_timesteps(timesteps=[...])` with the sampler's.  Learned steps have no equal there: they become
    DPM-Solver++(2M) on the nearest whole timesteps.
    """
    shared = {key: value for key, value in schedule.to_config().items() if key in _SHARED}
    zero_snr = schedule.rescale_betas_zero_snr
    if sampler.solver == "heun":
        # "leading" spacing only sets the start to noise * sqrt(1 + sigma^2), as ours is.
        own = {"_class_name": "HeunDiscreteScheduler", "timestep_spacing": "leading", "clip_sample": False}
        if zero_snr:  # this class has no such key; the same table can be given
            shared["trained_betas"] = betas_from_alpha_bar(schedule.alpha_bar).tolist()
        return {**shared, **own, "use_karras_sigmas": False}
    if sampler.solver == "ddim" and sampler.timesteps == ddim_timesteps(schedule, len(sampler.timesteps)):
        return {**schedule.to_config(), "_class_name": "DDIMScheduler", "clip_sample_range": 1.0}
    return {
        **shared,
        "_class_name": "DPMSolverMultistepScheduler",
        "solver_order": 2 if sampler.learned else SOLVERS[sampler.solver].options.get("order", 1),
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "euler_at_final": False,
        "thresholding": False,
        "use_karras_sigmas": False,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": zero_snr,
    }


def ddim_timesteps(schedule: NoiseSchedule, n: int) -> tuple[int, ...] | None:
    """Timesteps of diffusers' DDIMScheduler with trailing spacing; None where it does not step from one to the next."""
    stride, rest = divmod(schedule.num_train_timesteps, n)
    if rest:
        return None
    return tuple(range(schedule.num_train_timesteps - 1, -1, -stride))
