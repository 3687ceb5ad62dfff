"""A Gymnasium environment: a policy chooses the noise levels of one sampling run, one network evaluation a step."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import mlx.core as mx
import numpy as np
from gymnasium import spaces

from mlx_tasks.rl.levels import next_timestep
from mlx_tasks.rl.problem import Problem, endpoint_errors
from mlx_tasks.samplers.solvers import find_solver

ENVIRONMENT_ID = "mlx_tasks/StepGrid-v0"
STOP_ABOVE = 0.8
OBSERVATION_SIZE = 8
_DIVERGED_REWARD = -5.0
_LEAST_ERROR = 1e-6


class StepGridEnv(gym.Env[np.ndarray, np.ndarray]):
    """One episode is one batch of noises, sampled by the real model and the real solver within an NFE budget.

    Step k chooses noise level k, moves there from level k - 1 by the solver, and evaluates the network there: one
    evaluation a step. The episode ends when the budget is used or the policy stops; the last estimate of x0 is then the
    image, as it is in every run of the sampler.

    ## Action space: `Box(-1, 1, (2,), float32)`; values outside are clipped

    | i | meaning |
    |---|---|
    | 0 | how much of the time left the next level takes: 0 the evenly spaced grid, above it more (`levels.py`) |
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

    -speed_weight at each evaluation; at the end also log(uniform / error), where error is the mean RMS distance of the
    images from the many-step results of the same noises, and uniform is the same for the evenly spaced ("trailing")
    grid that uses the whole budget. A result that is not finite gives -5.

    ## Episode end

    terminated when the budget is used or the policy stops; never truncated. The last info holds `timesteps`, `nfe`,
    `error` and `uniform_error`.

    ## Reset

    `options`: `budget` and `task` (index) fix what is otherwise drawn.

    Args:
        problem: the batches, their model and their solver.
        budgets: NFE budgets that episodes are drawn from, each at least 1 and below the number of timesteps.
        speed_weight: reward lost for one network evaluation.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own name and type

    def __init__(self, problem: Problem, budgets: tuple[int, ...] = (4, 6, 8), speed_weight: float = 0.05) -> None:
        last = problem.schedule.num_train_timesteps - 1
        if not budgets or not all(1 <= budget <= last for budget in budgets):
            raise ValueError(f"budgets must be one or more in [1, {last}], got {list(budgets)}")
        self.problem, self.budgets, self.speed_weight = problem, tuple(budgets), speed_weight
        self.observation_space = spaces.Box(-1.0, 1.0, (OBSERVATION_SIZE,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
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
        self._estimate = self._before = mx.zeros_like(self._task.noise)  # until the network was asked
        self._x, self._state = self._task.noise, None
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Go to the next level and evaluate the network there."""
        place, stop = (float(value) for value in action)
        self._move(place)
        finite = self._evaluate()
        reward = -self.speed_weight
        over = not finite or len(self.timesteps) == self.budget or stop > STOP_ABOVE
        if not over:
            return self._observe(), reward, False, False, {}
        info: dict[str, Any] = {"timesteps": list(self.timesteps), "nfe": len(self.timesteps)}
        uniform = self.problem.uniform_error(self.budget, self._index)
        error = float(endpoint_errors(np.array(self._estimate), self._task.truth).mean()) if finite else math.inf
        info |= {"uniform_error": uniform, "error": error}
        gain = math.log(max(uniform, _LEAST_ERROR) / max(error, _LEAST_ERROR)) if finite else _DIVERGED_REWARD
        return self._observe(), reward + gain, True, False, info

    def _move(self, place: float) -> None:
        """Choose a level and bring x there, with the estimate that the network gave at the level before."""
        total = self.problem.schedule.num_train_timesteps
        previous = self.timesteps[-1] if self.timesteps else total
        self.timesteps.append(next_timestep(place, len(self.timesteps), self.budget, previous))
        sigma_next = self._sigma(-1)
        if len(self.timesteps) == 1:
            self._x = self._task.noise * math.sqrt(1.0 + sigma_next**2)
            self._state = self._solver.init(self._x, (*[sigma_next] * self.budget, 0.0))  # levels to come are open
            return
        known = _Known(self._estimate)
        self._x, self._state = self._solver.step(known, self._x, self._state, self._sigma(-2), sigma_next, None)

    def _evaluate(self) -> bool:
        """Ask the network for x0 at the current level; whether all of it is finite."""
        self._before, self._estimate = self._estimate, self._task.denoise(self._x, self._sigma(-1))
        total = self._estimate.sum()
        mx.eval(self._x, self._estimate, total)
        self.problem.meter.evaluations += len(self._task.noise) * self._task.denoise.evaluations
        return bool(mx.isfinite(total).item())

    def _sigma(self, index: int) -> float:
        return float(self.problem.schedule.sigmas[self.timesteps[index]])

    def _observe(self) -> np.ndarray:
        total, taken = self.problem.schedule.num_train_timesteps, len(self.timesteps)
        low, high = min(self.budgets), max(self.budgets)
        values = [-1.0] * OBSERVATION_SIZE
        values[0] = 2 * (self.budget - low) / (high - low) - 1 if high > low else 0.0
        values[1] = 2 * (self.budget - taken) / self.budget - 1
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
