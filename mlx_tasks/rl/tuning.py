"""The whole comparison for one model: plain search and PPO learn on some noises, all grids are judged on others."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from stable_baselines3.common.policies import ActorCriticPolicy

from mlx_tasks.rl.comparison import PPO, Entry, Verdict, judge, table
from mlx_tasks.rl.environment import ENVIRONMENT_ID, StepGridEnv
from mlx_tasks.rl.levels import median_grid
from mlx_tasks.rl.plain_search import TUNED, Found, search_grid
from mlx_tasks.rl.policy import greedy_episode
from mlx_tasks.rl.ppo import Learner, PpoOptions
from mlx_tasks.rl.problem import Problem
from mlx_tasks.samplers.grids import GRIDS, grid_from_timesteps

SEARCH_TASKS = (0, 1)
"""Batches that the plain search judges a grid on: the first two of those that PPO learns on."""


@dataclass(frozen=True)
class Exported:
    """A policy's open-loop grid for one budget.

    Attributes:
        timesteps: the grid: the median over the batches where those differ.
        agree: whether every batch gave this very grid.
        batches: how many batches were asked.
    """

    timesteps: tuple[int, ...]
    agree: bool
    batches: int


def tuned_grids(problem: Problem, budget: int, tries: int, seed: int) -> dict[str, Found]:
    """Each kind of grid with its ends tuned for a budget on the problem's first batches, and what that cost."""
    tasks = [i for i in SEARCH_TASKS if i < len(problem.tasks)]
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


def make_learner(
    problem: Problem, selection: Problem, budgets: tuple[int, ...], speed_weight: float, options: PpoOptions
) -> Learner:
    """PPO on the problem's noises; the policy kept is the one that does best on the selection's.

    The value by which policies are compared is the mean reward of their likeliest actions over budgets and batches.
    """

    def make_env() -> gym.Env:
        return gym.make(ENVIRONMENT_ID, problem=problem, budgets=budgets, speed_weight=speed_weight)

    held_out = StepGridEnv(selection, budgets, speed_weight)
    cases = [{"budget": budget, "task": task} for budget in budgets for task in range(len(selection.tasks))]

    def value(policy: ActorCriticPolicy) -> float:
        return sum(greedy_episode(policy, held_out, case)[0] for case in cases) / len(cases)

    return Learner(make_env, options, value, lambda: problem.meter.evaluations + selection.meter.evaluations)


def export_grid(policy: ActorCriticPolicy, problem: Problem, budgets: tuple[int, ...], budget: int) -> Exported:
    """The grid that a policy takes for a budget on noises it has not learned on, made open-loop.

    Batches may lead a state-conditioned policy to different grids; the median of them is taken, level by level.
    """
    environment = StepGridEnv(problem, budgets)
    batches = range(len(problem.tasks))
    infos = [greedy_episode(policy, environment, {"budget": budget, "task": task})[1] for task in batches]
    grids = [tuple(info["timesteps"]) for info in infos]
    median = median_grid(grids)
    return Exported(median, all(grid == median for grid in grids), len(grids))


def compare(
    test: Problem, budget: int, tuned: dict[str, Found], exported: Exported, cost: tuple[int, float], seed: int
) -> tuple[dict[str, Any], Verdict]:
    """(rows by method, verdict) of one budget, on the test's noises: default grids, tuned ones, PPO's.

    cost: network evaluations and seconds that PPO's learning took. It learned all budgets at once, so each budget is
        given the whole of it; a tuned grid's cost is its own budget's.
    """
    defaults = {name: make(test.schedule, budget) for name, make in GRIDS.items()}
    entries = {name: Entry(grid, test.errors(grid)) for name, grid in defaults.items()}
    for name, found in tuned.items():
        entries[name] = Entry(found.grid, test.errors(found.grid), found.evaluations, found.seconds)
    grid = grid_from_timesteps(test.schedule, exported.timesteps)
    entries[PPO] = Entry(grid, test.errors(grid), *cost)
    return table(entries, seed), judge(entries, seed)
