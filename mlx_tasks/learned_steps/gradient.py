"""Steps by gradient descent through the solver and the network, towards the many-step result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from mlx_tasks.learned_steps import unrolled
from mlx_tasks.learned_steps.unrolled import Parameters
from mlx_tasks.rl.problem import Problem, Task
from mlx_tasks.samplers.grids import Grid, rounded_grid
from mlx_tasks.samplers.learned import LearnedSteps

What = Literal["times", "all"]
RATE = 0.01
"""Learning rate; three times as much overshoots at first, and does not always come back (docs/schedules.md)."""
BACKWARD_COST = 2
"""Network evaluations that a backward pass is counted as: one for the inputs' gradients, one for computing forward
again or keeping it; the weights take none."""


@dataclass(frozen=True)
class Descent:
    """What gradient descent found.

    Attributes:
        steps: the best on the selection's noises.
        selection_error: their mean endpoint error there, and `history`: (iteration, that error) as it fell.
        evaluations, seconds: what learning cost, judging on the selection's noises included.
    """

    steps: LearnedSteps
    selection_error: float
    history: tuple[tuple[int, float], ...]
    evaluations: int
    seconds: float


def descend(
    problem: Problem,
    selection: Problem,
    start: Sequence[float],
    what: What = "all",
    iterations: int = 150,
    learning_rate: float = RATE,
    judge_every: int = 10,
    said: Callable[[int, float], None] | None = None,
) -> Descent:
    """Minimise the mean RMS distance to the many-step results, one batch of noises an iteration, by Adam.

    start: noise levels to begin at, the last of which is 0: those of the best grid known.
    what: "times" learns the levels of DPM-Solver++(2M) alone; "all" also the levels told and the weights.
    learning_rate: of the first iteration; it falls along half a cosine to a twentieth.  Levels move in logarithms.
    Gradients longer than 1 are shortened to 1.  The parameters kept are those that did best on the selection's noises,
    so that a descent never ends above where it started; one that stops being finite ends there.
    said: called with (iteration, selection error).
    """
    began, spent = time.perf_counter(), selection.meter.evaluations
    ends = (float(problem.schedule.sigmas[0]), float(problem.schedule.sigmas[-1]))
    parameters = unrolled.from_sigmas(start)
    rate = optim.cosine_decay(learning_rate, iterations, learning_rate / 20)
    optimiser = optim.Adam(rate, betas=[0.9, 0.99], bias_correction=True)
    evaluations, history = 0, []

    def whole(trained: Parameters) -> Parameters:
        return unrolled.with_2m_weights(trained, ends) if what == "times" else trained

    def loss(trained: Parameters, task: Task) -> mx.array:
        images = unrolled.run(task.denoise, task.noise, whole(trained), ends)
        gap = (images - mx.array(task.truth)).square().mean(axis=(1, 2, 3))
        return mx.sqrt(gap + 1e-10).mean()

    gradient = mx.value_and_grad(loss)
    best, best_error = parameters, np.inf
    for iteration in range(iterations + 1):
        if iteration % judge_every == 0 or iteration == iterations:
            error = float(selection.errors(unrolled.freeze(whole(parameters), ends)).mean())
            history.append((iteration, error))
            if error < best_error:
                best, best_error = dict(parameters), error
            if said is not None:
                said(iteration, error)
        if iteration == iterations:
            break
        task = problem.tasks[iteration % len(problem.tasks)]
        value, slopes = gradient(parameters, task)
        slopes, norm = optim.clip_grad_norm(slopes, 1.0)
        if not math.isfinite(float(value)) or not math.isfinite(float(norm)):
            break  # the best so far stands
        parameters = optimiser.apply_gradients(slopes, parameters)
        mx.eval(parameters, optimiser.state)
        evaluations += (1 + BACKWARD_COST) * len(start[:-1]) * len(task.noise) * task.denoise.evaluations
    problem.meter.evaluations += evaluations
    evaluations += selection.meter.evaluations - spent
    steps = unrolled.freeze(whole(best), ends)
    return Descent(steps, float(best_error), tuple(history), evaluations, time.perf_counter() - began)


def rounded(problem: Problem, steps: LearnedSteps) -> Grid:
    """The whole timesteps nearest to learned levels: what diffusers can be given."""
    return rounded_grid(problem.schedule, problem.schedule.t_from_sigma(np.array(steps.sigmas[:-1])))
