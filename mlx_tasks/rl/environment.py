"""A Gymnasium environment: a policy chooses the noise levels of one sampling run, one network evaluation a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium as gym
import mlx.core as mx
import numpy as np
from gymnasium import spaces

from mlx_tasks.rl.levels import fractions_of, next_timestep
from mlx_tasks.rl.problem import Problem, endpoint_errors
from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.solvers import Solver, find_solver

ENVIRONMENT_ID = "mlx_tasks/StepGrid-v0"
STOP_ABOVE = 0.8
OBSERVATION_SIZE = 8
Reward = Literal["hybrid", "quality", "speed"]
_DIVERGED_REWARD = -5.0
_LEAST_ERROR = 1e-6


@dataclass(frozen=True)
class Choice:
    """What one action means.

    Attributes:
        place: how much of the time left the next level takes, see `levels.next_timestep`.
        stop: whether the evaluation there is the last.
        solver: what moves there.
        denoise: what is evaluated there.
        cost: of the budget, one evaluation or two.
    """

    place: float
    stop: bool
    solver: Solver
    denoise: Denoise
    cost: int = 1


class StepGridEnv(gym.Env[np.ndarray, np.ndarray]):
    """One episode is one batch of noises, sampled by the real model and the real solver within an NFE budget.

    Step k chooses noise level k, moves there from level k - 1 by the solver, and evaluates the network there: one
    evaluation a step. The episode ends when the budget is used or the policy stops; the last estimate of x0 is then the
    image, as it is in every run of the sampler.

    ## Action space: `Box(-1, 1, (2,), float32)`; values outside are clipped

    | i | meaning |
    |---|---|
    | 0 | how much of the time left the next level takes: 0 as the start grid does, above it more (`levels.py`) |
    | 1 | above 0.8: stop after this evaluation and leave the rest of the budget unspent |

    No action makes a bad grid: levels are whole timesteps that fall strictly and leave room for those to come.

    ## Observation space: `Box(-1, 1, (8,), float32)`

    | i | meaning | at the start |
    |---|---|---|
    | 0 | budget, from the smallest (-1) to the largest (1) | |
    | 1 | share of the budget left, 2 left/budget - 1 | 1 |
    | 2 | time left, 2 (t + 1)/T - 1 | 1 |
    | 3 | half log SNR at the current level, over the schedule's range | -1 |
    | 4 | length of the last step, as a share of all time, times 2, less 1 | -1 |
    | 5 | log10 of the change of the x0 estimate in the last step (RMS), from 1e-4 (-1) to 1 (1) | -1 |
    | 6 | the same divided by the step's length in half log SNR: the local curvature | -1 |
    | 7 | RMS of the x0 estimate, less 1 | -1 |

    ## Reward

    With error the mean RMS distance of the images from the many-step results of the same noises, and uniform the same
    for the evenly spaced ("trailing") grid that uses the whole budget:

    | reward | at each evaluation | at the end |
    |---|---|---|
    | `hybrid` | -speed_weight | log(uniform / error) |
    | `quality` | 0 | log(uniform / error) |
    | `speed` | 0 | the share of the budget left unspent, or -1 where error is above uniform |

    A result that is not finite gives -5. Every image is held against the result of its own noise, so images outside the
    data's range, or all alike, lose reward as any other error does.

    ## Episode end

    terminated when the budget is used or the policy stops; never truncated. The last info holds `timesteps`, `nfe`,
    `error` and `uniform_error`.

    ## Reset

    `options`: `budget` and `task` (index) fix what is otherwise drawn.

    Args:
        problem: the batches, their model and their solver.
        budgets: NFE budgets that episodes are drawn from, each at least 1 and below the number of timesteps.
        speed_weight: reward lost for one network evaluation.
        reward: which of the rewards.
        start: budget -> timesteps of the grid that action 0 follows; the evenly spaced one by default.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own name and type

    observation_size, action_size = OBSERVATION_SIZE, 2
    _most_cost = 1  # of the budget, for one step

    def __init__(
        self,
        problem: Problem,
        budgets: tuple[int, ...] = (4, 6, 8),
        speed_weight: float = 0.05,
        reward: Reward = "hybrid",
        start: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        last = problem.schedule.num_train_timesteps - 1
        if not budgets or not all(1 <= budget <= last for budget in budgets):
            raise ValueError(f"budgets must be one or more in [1, {last}], got {list(budgets)}")
        if reward not in get_args(Reward):
            raise ValueError(f"reward must be one of {', '.join(get_args(Reward))}, got {reward!r}")
        self.problem, self.budgets, self.speed_weight, self.reward = problem, tuple(budgets), speed_weight, reward
        self._start = {n: fractions_of(grid, last + 1) for n, grid in (start or {}).items()}
        self.observation_space = spaces.Box(-1.0, 1.0, (self.observation_size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (self.action_size,), np.float32)
        self._solver = find_solver(problem.solver)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a budget and a batch, unless the options name them."""
        super().reset(seed=seed)
        drawn_budget = self.budgets[int(self.np_random.integers(len(self.budgets)))]
        drawn_task = int(self.np_random.integers(len(self.problem.tasks)))
        self.budget = int((options or {}).get("budget", drawn_budget))
        self._index = int((options or {}).get("task", drawn_task))
        self._task = self.problem.tasks[self._index]
        self.timesteps: list[int] = []
        self.spent = 0
        self._estimate = self._before = mx.zeros_like(self._task.noise)  # until the network was asked
        self._x, self._state = self._task.noise, None
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Go to the next level and evaluate the network there."""
        choice = self._choice(np.asarray(action, dtype=np.float64))
        self._move(choice)
        finite = self._evaluate(choice.denoise)
        self.spent += choice.cost
        reward = -self.speed_weight * choice.cost if self.reward == "hybrid" else 0.0
        if finite and self.spent < self.budget and self.timesteps[-1] > 0 and not choice.stop:
            return self._observe(), reward, False, False, {}
        info: dict[str, Any] = {"timesteps": list(self.timesteps), "nfe": self.spent}
        uniform = self.problem.uniform_error(max(1, self.budget // self._most_cost), self._index)
        error = float(endpoint_errors(np.array(self._estimate), self._task.truth).mean()) if finite else math.inf
        info |= {"uniform_error": uniform, "error": error}
        return self._observe(), reward + self._final_reward(uniform, error), True, False, info

    def _final_reward(self, uniform: float, error: float) -> float:
        if not math.isfinite(error):
            return _DIVERGED_REWARD
        if self.reward == "speed":
            return 1.0 - self.spent / self.budget if error <= uniform else -1.0
        return math.log(max(uniform, _LEAST_ERROR) / max(error, _LEAST_ERROR))

    def _choice(self, action: np.ndarray) -> Choice:
        """What an action means."""
        return Choice(float(action[0]), bool(action[1] > STOP_ABOVE), self._solver, self._task.denoise)

    def _move(self, choice: Choice) -> None:
        """Choose a level and bring x there, with the estimate that the network gave at the level before."""
        total, taken = self.problem.schedule.num_train_timesteps, len(self.timesteps)
        previous = self.timesteps[-1] if self.timesteps else total
        count = taken + max(1, (self.budget - self.spent) // choice.cost)
        known = self._start.get(count, ())
        default = known[taken] if taken < len(known) else None
        self.timesteps.append(next_timestep(choice.place, taken, count, previous, default))
        sigma_next = self._sigma(-1)
        if len(self.timesteps) == 1:
            self._x = self._task.noise * math.sqrt(1.0 + sigma_next**2)
            self._state = self._solver.init(self._x, (*[sigma_next] * self.budget, 0.0))  # levels to come are open
            return
        estimate = _Known(self._estimate)
        self._x, self._state = choice.solver.step(estimate, self._x, self._state, self._sigma(-2), sigma_next, None)

    def _evaluate(self, denoise: Denoise) -> bool:
        """Ask the network for x0 at the current level; whether all of it is finite."""
        self._before, self._estimate = self._estimate, denoise(self._x, self._sigma(-1))
        total = self._estimate.sum()
        mx.eval(self._x, self._estimate, total)
        self.problem.meter.evaluations += len(self._task.noise) * denoise.evaluations
        return bool(mx.isfinite(total).item())

    def _sigma(self, index: int) -> float:
        return float(self.problem.schedule.sigmas[self.timesteps[index]])

    def _observe(self) -> np.ndarray:
        total, taken = self.problem.schedule.num_train_timesteps, len(self.timesteps)
        low, high = min(self.budgets), max(self.budgets)
        values = [-1.0] * self.observation_size
        values[0] = 2 * (self.budget - low) / (high - low) - 1 if high > low else 0.0
        values[1] = 2 * (self.budget - self.spent) / self.budget - 1
        values[2] = 2 * (self.timesteps[-1] + 1) / total - 1 if taken else 1.0
        if taken:
            noisiest, cleanest = np.log(self.problem.schedule.sigmas[[-1, 0]])
            values[3] = 2 * (noisiest - math.log(self._sigma(-1))) / (noisiest - cleanest) - 1
            values[7] = _rms(self._estimate) - 1
        if taken > 1:
            change, length = _rms(self._estimate - self._before), math.log(self._sigma(-2) / self._sigma(-1))
            values[4] = 2 * (self.timesteps[-2] - self.timesteps[-1]) / total - 1
            values[5], values[6] = _log_scale(change), _log_scale(change / length)
        return np.clip(np.nan_to_num(values, nan=1.0), -1.0, 1.0).astype(np.float32)


class _Known:
    """A denoiser whose answer is already there."""

    evaluations = 0

    def __init__(self, estimate: mx.array) -> None:
        self._estimate = estimate

    def __call__(self, x: mx.array, sigma: float) -> mx.array:
        return self._estimate


def _rms(values: mx.array) -> float:
    return float(np.sqrt(np.square(np.array(values)).mean()))


def _log_scale(value: float) -> float:
    """log10 from 1e-4 (-1) to 1 (1)."""
    return math.log10(max(value, 1e-4)) / 2 + 1


if ENVIRONMENT_ID not in gym.registry:
    gym.register(ENVIRONMENT_ID, entry_point="mlx_tasks.rl.environment:StepGridEnv")
