"""Levels and timesteps as diffusers' schedulers lay them out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_tasks.diffusion.betas import ZERO_SNR_ALPHA_BAR
from mlx_tasks.diffusion.schedule import NoiseSchedule

RESHAPED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def spaced(values: Mapping[str, Any], total: int, n: int, last: int | None = None, *, spare: int = 0) -> np.ndarray:
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


def reshaped(values: Mapping[str, Any], low: float, high: float, n: int) -> np.ndarray | None:
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


def table(schedule: NoiseSchedule) -> np.ndarray:
    """(T,) sigmas as the schedulers of continuous levels have them: a last SNR of 0 always at the same stand-in.

    On a linear schedule that lies below the level before it.
    """
    if not schedule.rescale_betas_zero_snr:
        return schedule.sigmas
    return np.concatenate([schedule.sigmas[:-1], [math.sqrt((1.0 - ZERO_SNR_ALPHA_BAR) / ZERO_SNR_ALPHA_BAR)]])


def float32_times(schedule: NoiseSchedule, sigmas: np.ndarray) -> np.ndarray:
    """Fractional timesteps by diffusers' float32 table, whose rounding decides what cutting to whole ones gives."""
    kept = schedule.alpha_bar.astype(np.float32)
    table = np.log(((np.float32(1.0) - kept) / kept) ** np.float32(0.5))
    return np.interp(np.log(sigmas), table.astype(np.float64), np.arange(len(table)))
