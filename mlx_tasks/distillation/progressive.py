"""Progressive distillation: one DDIM step of the student does what two DDIM steps of its teacher do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks.data.loader import ImageSet
from mlx_tasks.diffusion.losses import weighted_mse
from mlx_tasks.diffusion.parameterization import eps_from_x0, per_image, x0_from_v, x_from_x0_eps
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.distillation.student import StudentOptions, student_steps
from mlx_tasks.distillation.teacher import Velocity
from mlx_tasks.samplers.grids import uniform_grid
from mlx_tasks.training.batches import draw_batch
from mlx_tasks.training.learner import Batch, Loss
from mlx_tasks.training.loop import StepRecord


class Level(NamedTuple):
    """A place on the grid for each image of a batch: t (B,), alpha and std (B, 1, 1, 1); data is alpha 1, std 0."""

    t: mx.array
    alpha: mx.array
    std: mx.array


def ddim_step(x: mx.array, x0: mx.array, now: Level, then: Level) -> mx.array:
    """x at `then`, from x at `now` and the estimate x0:  alpha' x0 + std' eps,  eps = (x - alpha x0) / std."""
    return x_from_x0_eps(x0, eps_from_x0(x, x0, now.alpha, now.std), then.alpha, then.std)


def halving_target(
    estimate: Callable[[mx.array, Level], mx.array], x: mx.array, start: Level, middle: Level, end: Level
) -> mx.array:
    """The x0 with which one DDIM step from `start` lands where two of the teacher's land, by way of `middle`.

    x'' = ddim(ddim(x));  x0 = (x'' - (std''/std) x) / (alpha'' - (std''/std) alpha)
    estimate: (x, level) -> the teacher's x0.  x: (B, H, W, C) at `start`.
    Source: Salimans & Ho 2022, Algorithm 2 (their sigma is our std).
    """
    x_middle = ddim_step(x, estimate(x, start), start, middle)
    x_end = ddim_step(x_middle, estimate(x_middle, middle), middle, end)
    ratio = end.std / start.std
    return (x_end - ratio * x) / (end.alpha - ratio * start.alpha)


def halving_loss(teacher: Velocity, schedule: NoiseSchedule, num_steps: int) -> Loss:
    """(student, batch) -> mean of max(snr, 1) * |target - student's x0|^2 on the student's grid of `num_steps`.

    The weight is the paper's truncated SNR. For a network that predicts v it is max(alpha^2, std^2) on the error of v,
    which lies between 1/2 and 1: v makes every level count about the same, at the noisiest one too.
    batch: x0, eps (B, R, R, C), level (B,) index of the student's step, 0 the noisiest; labels (B,) if taken.
    Raises: ValueError where the schedule has fewer than 2 num_steps timesteps.
    Source: Salimans & Ho 2022, section 4 and Algorithm 2.
    """
    fine = _fine_grid(schedule, num_steps)
    times = mx.array([float(t) for t in fine] + [0.0])
    whole = mx.array(fine, dtype=mx.int32)
    alphas = mx.concatenate([schedule.alpha(whole), mx.ones(1)])
    stds = mx.concatenate([schedule.std(whole), mx.zeros(1)])

    def loss(student: nn.Module, batch: Batch) -> mx.array:
        x0, labels = batch["x0"], batch.get("labels")

        def level(index: mx.array) -> Level:
            return Level(times[index], per_image(alphas[index], x0), per_image(stds[index], x0))

        def estimate(network: Velocity, x: mx.array, at: Level) -> mx.array:
            return x0_from_v(x, network(x, at.t, labels), at.alpha, at.std)

        start, middle, end = (level(2 * batch["level"] + offset) for offset in (0, 1, 2))
        x = x_from_x0_eps(x0, batch["eps"], start.alpha, start.std)
        target = halving_target(lambda x, at: estimate(teacher, x, at), x, start, middle, end)
        weight = mx.maximum((start.alpha / start.std) ** 2, 1).reshape(-1)
        return weighted_mse(estimate(student, x, start), mx.stop_gradient(target), weight)

    return loss


def halving_steps(
    student: nn.Module,
    teacher: Velocity,
    data: ImageSet,
    schedule: NoiseSchedule,
    num_steps: int,
    options: StudentOptions,
    checkpoints: Path | None = None,
    identity: str = "",
    notes: dict[str, Any] | None = None,
) -> Iterator[StepRecord]:
    """Train `student` (which holds the teacher's weights at first) in place to take `num_steps` steps.

    Arguments and errors as `output.distill_steps`.
    """
    loss = halving_loss(teacher, schedule, num_steps)

    def batch_at(step: int) -> Batch:
        return draw_batch(data, options.batch_size, num_steps, options.seed, f"halving-{num_steps}", step)

    return student_steps(student, loss, batch_at, options, checkpoints, identity, notes)


def _fine_grid(schedule: NoiseSchedule, num_steps: int) -> list[int]:
    """The student's timesteps with the teacher's between them.

    That is the uniform grid of 2 num_steps, but where T / num_steps is not whole the two grids round apart by one
    timestep here and there; the student's then stand.
    """
    fine = list(uniform_grid(schedule, 2 * num_steps).timesteps)
    fine[::2] = uniform_grid(schedule, num_steps).timesteps
    return fine
