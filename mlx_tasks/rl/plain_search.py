"""The grids a learned schedule has to beat: known shapes, with their ends (and rho) found by plain search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.samplers.grids import Grid, karras_grid, log_snr_grid
from mlx_tasks.samplers.learned import LearnedSteps

Make = Callable[[np.ndarray], Grid]
"""(D,) numbers in [0, 1] -> a grid."""

_RHO = (1.0, 20.0)
_RADIUS = (0.2, 0.02)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        grid: the best grid tried, or the best steps.
        error: its error.
        tried: grids tried.
        evaluations, seconds: what the tries cost, if the caller measured it.
    """

    grid: Grid | LearnedSteps
    error: float
    tried: int
    evaluations: int = 0
    seconds: float = 0.0


def search_grid(error: Callable[[Grid], float], make: Make, dimensions: int, tries: int, seed: int) -> Found:
    """The best of `tries` grids: a third spread over the box (Halton), the rest near the best so far.

    Each later try is the best one moved by a normal of a radius that falls from 0.2 to 0.02 of the box, reflected at
    its sides. A grid that comes up again is not evaluated again and counts as a try.
    error: grid -> what is to be small.  Raises: ValueError for no tries.
    """
    if tries < 1:
        raise ValueError(f"a search needs at least one try, got {tries}")
    rng = np.random.default_rng(seed)
    spread = max(1, tries // 3)
    points = list(qmc.Halton(dimensions, rng=rng).random(spread))
    known: dict[tuple[int, ...], float] = {}
    best_point, best_grid, best = points[0], make(points[0]), np.inf
    for index in range(tries):
        if index < spread:
            point = points[index]
        else:
            share = (index - spread) / max(1, tries - spread - 1)
            radius = _RADIUS[0] * (_RADIUS[1] / _RADIUS[0]) ** share
            moved = best_point + rng.normal(0.0, radius, dimensions)
            point = np.clip(np.where(moved < 0, -moved, np.where(moved > 1, 2 - moved, moved)), 0.0, 1.0)
        grid = make(point)
        if grid.timesteps not in known:
            known[grid.timesteps] = error(grid)
        if known[grid.timesteps] < best:
            best_point, best_grid, best = point, grid, known[grid.timesteps]
    return Found(best_grid, best, tries)


def ends(schedule: NoiseSchedule, n: int, first: float, last: float) -> tuple[int, int]:
    """(t_first, t_last) of two numbers in [0, 1]: t_first over the noisier half of time, t_last over the other half.

    t_last goes with the square of its number, because what is left to choose there is near 0. Room for n is kept.
    """
    top = schedule.num_train_timesteps - 1
    half = max((top + 1) // 2, min(n - 1, top))
    t_first = round(half + first * (top - half))
    return t_first, min(round(last**2 * (top - half)), t_first - n + 1)


def log_snr_maker(schedule: NoiseSchedule, n: int) -> Make:
    """Log-SNR grids by two numbers: the two ends."""

    def make(point: np.ndarray) -> Grid:
        t_first, t_last = ends(schedule, n, float(point[0]), float(point[1]))
        return log_snr_grid(schedule, n, t_first=t_first, t_last=max(0, t_last))

    return make


def karras_maker(schedule: NoiseSchedule, n: int) -> Make:
    """Karras grids by three numbers: the two ends, and rho from 1 to 20 in logarithms."""

    def make(point: np.ndarray) -> Grid:
        t_first, t_last = ends(schedule, n, float(point[0]), float(point[1]))
        rho = _RHO[0] * (_RHO[1] / _RHO[0]) ** float(point[2])
        return karras_grid(schedule, n, rho, t_first=t_first, t_last=max(0, t_last))

    return make


TUNED: dict[str, tuple[Callable[[NoiseSchedule, int], Make], int]] = {
    "log_snr_tuned": (log_snr_maker, 2),
    "karras_tuned": (karras_maker, 3),
}
"""Name -> (its grids by numbers in [0, 1], how many numbers)."""
