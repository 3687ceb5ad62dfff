"""PPO on a problem: its learner, and the open-loop grids of what it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from stable_baselines3.common.policies import ActorCriticPolicy

from mlx_tasks.rl.control_environment import CONTROL_ENVIRONMENT_ID
from mlx_tasks.rl.environment import ENVIRONMENT_ID
from mlx_tasks.rl.levels import median_grid
from mlx_tasks.rl.policy import greedy_episode
from mlx_tasks.rl.ppo import Learner, PpoOptions
from mlx_tasks.rl.problem import Problem


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


def make_learner(
    problem: Problem,
    selection: Problem,
    budgets: tuple[int, ...],
    speed_weight: float,
    options: PpoOptions,
    *,
    start: Mapping[int, Sequence[int]] | None = None,
    control: bool = False,
    policy: ActorCriticPolicy | None = None,
) -> Learner:
    """PPO on the problem's noises; the policy kept is the one that does best on the selection's.

    The value by which policies are compared is the mean reward of their likeliest actions over budgets and batches.
    start: budget -> timesteps of the grid that the untrained policy follows; the evenly spaced one by default.
    control: whether it also chooses orders and where guidance is on (`SamplerControlEnv`).
    policy: one that was learned before, on another model or kind of image, to go on from.
    """
    given: dict[str, Any] = {"budgets": budgets, "speed_weight": speed_weight, "start": start}
    name = CONTROL_ENVIRONMENT_ID if control else ENVIRONMENT_ID

    def make_env() -> gym.Env:
        return gym.make(name, problem=problem, **given)

    held_out = gym.make(name, problem=selection, **given)
    cases = [{"budget": budget, "task": task} for budget in budgets for task in range(len(selection.tasks))]

    def value(policy: ActorCriticPolicy) -> float:
        return sum(greedy_episode(policy, held_out, case)[0] for case in cases) / len(cases)

    learner = Learner(make_env, options, value, lambda: problem.meter.evaluations + selection.meter.evaluations)
    if policy is not None:
        learner.start_from(policy)
    return learner


def export_grid(
    policy: ActorCriticPolicy,
    problem: Problem,
    budgets: tuple[int, ...],
    budget: int,
    start: Mapping[int, Sequence[int]] | None = None,
) -> Exported:
    """The grid that a policy takes for a budget on noises it has not learned on, made open-loop.

    Batches may lead a state-conditioned policy to different grids; the median of them is taken, level by level.
    """
    environment = gym.make(ENVIRONMENT_ID, problem=problem, budgets=budgets, start=start)
    batches = range(len(problem.tasks))
    infos = [greedy_episode(policy, environment, {"budget": budget, "task": task})[1] for task in batches]
    grids = [tuple(info["timesteps"]) for info in infos]
    median = median_grid(grids)
    return Exported(median, all(grid == median for grid in grids), len(grids))
