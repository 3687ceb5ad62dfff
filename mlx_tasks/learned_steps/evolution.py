"""Levels by evolution: CMA-ES (the library cmaes) on their logarithms, as a reference that takes no gradient."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from cmaes import CMA

from mlx_tasks.rl.plain_search import Found
from mlx_tasks.rl.problem import Problem
from mlx_tasks.samplers.grids import Grid, rounded_grid

FIRST_STEP = 0.3
"""Standard deviation of the first generation, in logarithms of the levels' falls."""


def evolve(problem: Problem, start: Sequence[float], evaluations: int, tasks: Sequence[int], seed: int) -> Found:
    """The best grid of whole timesteps that CMA-ES finds from a start with about that many network evaluations.

    start: noise levels, the last of which is 0.  Searched are log of the first level and logarithms of the falls of
    log sigma, so that every candidate falls; each is rounded to whole timesteps and judged on the tasks' batches.
    Source: Hansen & Ostermeier 2001; population size 4 + 3 log(n), the library's default.
    """
    began, before = time.perf_counter(), problem.meter.evaluations
    logs = np.log(np.asarray(start[:-1], dtype=np.float64))
    mean = np.concatenate([logs[:1], np.log(-np.diff(logs))])
    known: dict[tuple[int, ...], float] = {}

    def grid_of(point: np.ndarray) -> Grid:
        levels = np.exp(point[0] - np.concatenate([[0.0], np.cumsum(np.exp(point[1:]))]))
        return rounded_grid(problem.schedule, problem.schedule.t_from_sigma(levels))

    def error(grid: Grid) -> float:
        if grid.timesteps not in known:
            known[grid.timesteps] = float(problem.errors(grid, tasks).mean())
        return known[grid.timesteps]

    best = grid_of(mean)
    best_error, tried = error(best), 1
    optimiser = CMA(mean=mean, sigma=FIRST_STEP, seed=seed) if len(mean) > 1 else None
    while optimiser is not None and problem.meter.evaluations - before < evaluations and not optimiser.should_stop():
        told = []
        for _ in range(optimiser.population_size):
            point = optimiser.ask()
            grid = grid_of(point)
            told.append((point, error(grid)))
            tried += 1
            if told[-1][1] < best_error:
                best, best_error = grid, told[-1][1]
        optimiser.tell(told)
    return Found(best, best_error, tried, problem.meter.evaluations - before, time.perf_counter() - began)
