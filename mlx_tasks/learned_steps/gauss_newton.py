"""Steps by Levenberg and Marquardt's least squares on the endpoint: few numbers, many residuals, no backward pass.

A run of n steps has 4 to 5 n numbers, and every pixel of every noise is a residual, so the Jacobian by differences
costs as many runs and tells far more than a gradient does: a dozen iterations are enough.  Each of its runs starts at
the step that its number belongs to, which spares it half of the evaluations and more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_tasks.errors import DataError, DivergedError
from mlx_tasks.learned_steps import unrolled
from mlx_tasks.learned_steps.gradient import Descent
from mlx_tasks.learned_steps.kept_run import KeptRun
from mlx_tasks.learned_steps.unrolled import Parameters
from mlx_tasks.rl.problem import Problem, Task
from mlx_tasks.samplers.learned import HISTORY, LearnedSteps

DIFFERENCE = 0.005
"""Of the forward differences: float32 leaves a Jacobian two digits and more, and the error is smooth at this size."""
LONGEST = 0.5
"""Most that one number moves in an iteration."""
LEAST_GAIN = 0.005
"""A walk ends at the second iteration in a row that lowers the error by a smaller share: one alone may be damped."""
SCOUTING = 2
"""Iterations that every start makes before the best goes on alone."""
SCOUTED = 2
"""Batches of noises that several starts are told apart on: far more pixels than numbers that are fitted."""
TRIES = 12
"""Dampings that are tried before an iteration gives up: each costs a run, a Jacobian as many as there are numbers."""


@dataclass(frozen=True)
class _Numbers:
    """Which entries of the parameters are free, and the parameters they are taken from."""

    start: Parameters
    free: dict[str, np.ndarray]

    @classmethod
    def of(cls, start: Parameters) -> _Numbers:
        """Every level, every told level, and the weights of outputs that exist."""
        free = {name: np.ones(value.shape, bool) for name, value in start.items()}
        for step in range(min(HISTORY - 1, len(free["weights"]))):
            free["weights"][step, step:] = False
        return cls(start, free)

    def pack(self) -> np.ndarray:
        """(P,) the free numbers at the start."""
        return np.concatenate([np.array(self.start[name])[mask].ravel() for name, mask in self.free.items()])

    def unpack(self, numbers: np.ndarray) -> Parameters:
        """The parameters with other free numbers."""
        made, taken = {}, 0
        for name, mask in self.free.items():
            values, count = np.array(self.start[name], dtype=np.float32), int(mask.sum())
            values[mask] = numbers[taken : taken + count]
            made[name], taken = mx.array(values), taken + count
        return made


def fit(
    problem: Problem,
    selection: Problem,
    starts: Sequence[Sequence[float]],
    iterations: int = 16,
    said: Callable[[int, float], None] | None = None,
) -> Descent:
    """Minimise the mean RMS distance to the many-step results over all of the problem's noises.

    The mean of root mean squares is brought to least squares by weighting each image with 1 / sqrt(its distance), anew
    each iteration.  A step is taken only if it lowers the error, and the damping follows (Marquardt 1963); the numbers
    kept are those that did best on the selection's noises, so that a fit never ends above its best start.

    The surface has several valleys, and the lowest start does not lie in the deepest: every start makes SCOUTING
    iterations on the first SCOUTED batches, and the best of them goes on with all.

    starts: each falling noise levels, the last of which is 0; said: called with (iteration, selection error).
    """
    began, spent = time.perf_counter(), (problem.meter.evaluations, selection.meter.evaluations)
    history: list[tuple[int, float]] = []

    def tell(iteration: int, error: float) -> None:
        history.append((iteration, error))
        if said is not None:
            said(iteration, error)

    tasks = problem.tasks if len(starts) == 1 else problem.tasks[:SCOUTED]
    walks = [_Walk(problem, selection, start, tasks) for start in starts]
    for iteration in range(min(SCOUTING, iterations) + 1):
        for walk in walks:
            if iteration:
                walk.advance()
        tell(iteration, min(walk.best_error for walk in walks))
    walk = min(walks, key=lambda one: one.best_error)
    walk.look_at(problem.tasks)
    for iteration in range(SCOUTING + 1, iterations + 1):
        if not walk.advance():
            break
        tell(iteration, walk.best_error)
    evaluations = problem.meter.evaluations - spent[0] + selection.meter.evaluations - spent[1]
    return Descent(walk.best, walk.best_error, tuple(history), evaluations, time.perf_counter() - began)


class _Walk:
    """One start's way down.

    Attributes:
        best, best_error: the steps that did best on the selection's noises, and their error there.
    """

    def __init__(self, problem: Problem, selection: Problem, start: Sequence[float], tasks: Sequence[Task]) -> None:
        self._problem, self._selection, self._tasks = problem, selection, tasks
        self._ends = (float(problem.schedule.sigmas[0]), float(problem.schedule.sigmas[-1]))
        self._numbers = _Numbers.of(unrolled.from_sigmas(start))
        self._point = self._numbers.pack().astype(np.float64)
        self._damping, self._ended, self._idle = 1e-2, False, 0
        self._look(self._point)
        self.best = self._steps(self._point)
        self.best_error = float(selection.errors(self.best).mean())

    def look_at(self, tasks: Sequence[Task]) -> None:
        """Go on with these noises."""
        if len(tasks) != len(self._tasks):
            self._tasks, self._ended, self._idle = tasks, False, 0
            self._look(self._point)

    def advance(self) -> bool:
        """One iteration; False once there is nothing to gain."""
        if self._ended or not self._step():
            self._ended = True
            return False
        steps = self._steps(self._point)
        error = float(self._selection.errors(steps).mean())
        if error < self.best_error:
            self.best, self.best_error = steps, error
        return True

    def _step(self) -> bool:
        """A Levenberg-Marquardt step; whether the error fell."""
        before, point = self._error, self._point
        jacobian = np.stack(
            [(self._beside(point + h) - self._residuals) / DIFFERENCE for h in DIFFERENCE * np.eye(len(point))], axis=-1
        )
        weights = (np.square(self._residuals).sum(axis=1) + 1e-12) ** -0.25
        weighted = (jacobian * weights[:, None, None]).reshape(-1, len(point))
        curvature = weighted.T @ weighted
        slope = weighted.T @ (self._residuals * weights[:, None]).ravel()
        for _ in range(TRIES):
            move = -np.linalg.solve(curvature + self._damping * np.diag(np.diag(curvature) + 1e-12), slope)
            move *= min(1.0, LONGEST / max(np.abs(move).max(), 1e-12))
            if self._look(point + move, before):
                self._damping = max(self._damping / 4.0, 1e-6)
                break
            self._damping *= 4.0
        else:
            return False
        self._idle = self._idle + 1 if self._error > (1.0 - LEAST_GAIN) * before else 0
        self._ended = self._idle > 1
        return True

    def _look(self, point: np.ndarray, below: float = math.inf) -> bool:
        """Stand at this point if the error is below so much there; whether it is."""
        try:
            runs = [KeptRun(task.denoise, task.noise, self._steps(point)) for task in self._tasks]
        except (DataError, DivergedError):
            if below == math.inf:
                raise
            return False
        for task, run in zip(self._tasks, runs, strict=True):
            self._problem.meter.evaluations += run.evaluations * len(task.noise)
        residuals = self._residuals_of([run.images for run in runs])
        if not (error := _mean(residuals)) < below:
            return False
        self._point, self._runs, self._residuals, self._error = point, runs, residuals, error
        return True

    def _beside(self, point: np.ndarray) -> np.ndarray:
        """The residuals at a point that differs from the one we stand at in one number."""
        steps, images = self._steps(point), []
        for task, run in zip(self._tasks, self._runs, strict=True):
            drawn, evaluations = run.part(steps)
            self._problem.meter.evaluations += evaluations * len(task.noise)
            images.append(drawn)
        return self._residuals_of(images)

    def _residuals_of(self, images: Sequence[mx.array]) -> np.ndarray:
        """(N, pixels): distances from the many-step results over the root of the pixels' count."""
        gaps = [np.array(drawn) - task.truth for drawn, task in zip(images, self._tasks, strict=True)]
        return np.concatenate([gap.reshape(len(gap), -1).astype(np.float64) / gap[0].size ** 0.5 for gap in gaps])

    def _steps(self, values: np.ndarray) -> LearnedSteps:
        return unrolled.freeze(self._numbers.unpack(values), self._ends)


def _mean(residuals: np.ndarray) -> float:
    """The mean over images of their root mean square distance."""
    return float(np.sqrt(np.square(residuals).sum(axis=1)).mean())
