"""Every way of finding steps but PPO, by name, with what it cost: for one problem and one budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlx_tasks.learned_steps import dynamic_programming, evolution, gauss_newton, gradient
from mlx_tasks.learned_steps.dynamic_programming import Trajectory
from mlx_tasks.learned_steps.gradient import Descent
from mlx_tasks.rl.plain_search import TUNED, Found, search_grid
from mlx_tasks.rl.problem import Meter, Problem, reference_grid
from mlx_tasks.samplers.grids import Grid

SEARCH_TASKS = (0, 1)
"""Batches that grids are judged on while they are searched: the first two of those that are learned on."""
GRADIENT_COST = 1 + gradient.BACKWARD_COST
PATH_LEVELS = 64
"""Levels of the trajectory that the shortest path is found on."""

Said = Callable[[str, int, float], None]
"""said(method, iteration, error on the selection's noises)."""


@dataclass(frozen=True)
class Effort:
    """How much each method may spend.

    Attributes:
        tries: grids of the plain search.
        iterations: of gradient descent, one batch each; CMA-ES may spend as many network evaluations.
        seed: of whatever draws.
    """

    tries: int
    iterations: int
    seed: int


def find_steps(
    problem: Problem,
    selection: Problem,
    num_steps: int,
    methods: Sequence[str],
    effort: Effort,
    said: Said | None = None,
    remembered: Grid | None = None,
) -> Iterator[tuple[str, Found]]:
    """(name, what it found) one after the other: the plain searches first, then those that start from their best.

    Learning starts from the best grid found so far; beside each method stands its own cost alone.

    methods: of "shortest_path", "cma_es", "gradient_levels", "gradient" and "least_squares".  Learning uses `problem`'s
    noises, and chooses among its iterates on `selection`'s.
    remembered: a grid of earlier runs, which is judged beside the searched ones.
    """
    plain = tuned_grids(problem, num_steps, effort.tries, effort.seed)
    if remembered is not None:
        plain = {"remembered": judged(problem, remembered), **plain}
    yield from plain.items()
    start = min(plain.values(), key=lambda found: found.error).grid
    assert isinstance(start, Grid)
    starts = [found.grid.sigmas for found in plain.values()]
    if "shortest_path" in methods:
        yield "shortest_path", _shortest_path(problem, num_steps)
    if "cma_es" in methods:
        first = problem.tasks[0]
        allowed = GRADIENT_COST * effort.iterations * num_steps * len(first.noise) * first.denoise.evaluations
        found = evolution.evolve(problem, start.sigmas, allowed, _tasks(problem), effort.seed)
        yield "cma_es", found
        assert isinstance(found.grid, Grid)
        start = found.grid
        starts.append(start.sigmas)
    learners: dict[str, Callable[[Callable[[int, float], None]], Descent]] = {
        "gradient_levels": lambda heard: gradient.descend(
            problem, selection, start.sigmas, "times", effort.iterations, said=heard
        ),
        "gradient": lambda heard: gradient.descend(
            problem, selection, start.sigmas, "all", effort.iterations, said=heard
        ),
        "least_squares": lambda heard: gauss_newton.fit(problem, selection, starts, said=heard),
    }
    for name, learn in learners.items():
        if name in methods:
            found = learn(lambda i, error, name=name: said(name, i, error) if said else None)
            tried = found.history[-1][0]
            steps = gradient.rounded(problem, found.steps) if name == "gradient_levels" else found.steps
            yield name, Found(steps, found.selection_error, tried, found.evaluations, found.seconds)


def tuned_grids(problem: Problem, budget: int, tries: int, seed: int) -> dict[str, Found]:
    """Each kind of grid with its ends tuned for a budget on the problem's first batches, and what that cost."""
    tasks = _tasks(problem)
    found = {}
    for name, (maker, dimensions) in TUNED.items():
        before, start = problem.meter.evaluations, time.perf_counter()
        result = search_grid(
            lambda grid: float(problem.errors(grid, tasks).mean()),
            maker(problem.schedule, budget),
            dimensions,
            tries,
            seed,
        )
        cost = problem.meter.evaluations - before
        found[name] = Found(result.grid, result.error, result.tried, cost, time.perf_counter() - start)
    return found


def judged(problem: Problem, grid: Grid) -> Found:
    """A grid that was not searched for, with its error on the noises that grids are searched on."""
    before, start = problem.meter.evaluations, time.perf_counter()
    error = float(problem.errors(grid, _tasks(problem)).mean())
    return Found(grid, error, 1, problem.meter.evaluations - before, time.perf_counter() - start)


def _shortest_path(problem: Problem, num_steps: int) -> Found:
    began, meter = time.perf_counter(), Meter()
    levels = reference_grid(problem.schedule, max(PATH_LEVELS, num_steps))
    trajectory: Trajectory = dynamic_programming.record(problem, levels, meter, _tasks(problem))
    grid = dynamic_programming.best_grid(problem, trajectory, num_steps)
    problem.meter.evaluations += meter.evaluations
    error = float(problem.errors(grid, _tasks(problem)).mean())
    return Found(grid, error, 1, meter.evaluations, time.perf_counter() - began)


def _tasks(problem: Problem) -> list[int]:
    return [i for i in SEARCH_TASKS if i < len(problem.tasks)]
