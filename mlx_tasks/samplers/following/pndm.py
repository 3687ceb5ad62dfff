"""The plan after diffusers' PNDMScheduler, which Stable Diffusion's own files name."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.samplers.following.plan import Plan, unit_start
from mlx_tasks.samplers.following.variance_preserving import path_to, whole_steps
from mlx_tasks.samplers.pndm import RUNGE_KUTTA


def pndm(schedule: NoiseSchedule, values: Mapping[str, Any], n: int, eta: float) -> Plan:
    """PNDM: steps of T // n, the first three by Runge and Kutta unless `skip_prk_steps`."""
    if values["prediction_type"] == "sample":
        raise DataError("prediction_type='sample' of PNDMScheduler is not supported, as in diffusers")
    times, last = whole_steps(schedule, values, n)
    levels = [float(schedule.sigmas[t]) for t in times]
    middles: list[tuple[float, float]] = []
    between: dict[float, float] = {}
    if not values["skip_prk_steps"]:
        if n <= RUNGE_KUTTA:
            raise DataError(f"skip_prk_steps=False takes at least {RUNGE_KUTTA + 1} steps, got {n}")
        half = schedule.num_train_timesteps // n // 2
        for t, following in pairwise(times[: RUNGE_KUTTA + 1]):
            # diffusers takes x half a stride down, and tells the network a timestep half a stride up from the next.
            first, second = float(schedule.sigmas[t - half]), float(schedule.sigmas[following + half])
            middles.append((first, second))
            between |= {second: float(following + half), first: float(following + half)}
    predict = "v" if values["prediction_type"] == "v_prediction" else "eps"
    path = path_to(levels, last)
    return Plan(
        schedule,
        path,
        tuple(float(t) for t in times),
        "pndm",
        {"predict": predict, "middles": tuple(middles), "twice": n > 1},
        unit_start(levels[0]),
        1.0 / unit_start(path[-1]),
        between=between,
    )
