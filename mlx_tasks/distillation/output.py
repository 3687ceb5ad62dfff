"""Output distillation: a student of any shape learns the teacher's velocity at every timestep.

For students whose architecture is not the teacher's, and so cannot start from its weights. The search uses it for its
trials and for the student it chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks.data.loader import ImageSet
from mlx_tasks.diffusion.losses import weighted_mse
from mlx_tasks.diffusion.parameterization import per_image, x_from_x0_eps
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.distillation.student import StudentOptions, student_steps
from mlx_tasks.distillation.teacher import Velocity
from mlx_tasks.training.batches import draw_batch
from mlx_tasks.training.learner import Batch, Loss
from mlx_tasks.training.loop import StepRecord


def output_loss(teacher: Velocity, schedule: NoiseSchedule) -> Loss:
    """(student, batch) -> mean |teacher's v - student's v|^2 at x_t = alpha x0 + std eps.

    In x0 this is the SNR + 1 weight. The teacher's v has no sampling noise, as the data's v = alpha eps - std x0 has,
    so a student learns from fewer images than the teacher did.
    batch: x0, eps (B, R, R, C), level (B,) whole timesteps, labels (B,) if the networks take them.
    Source: Hinton et al. 2015; the weight: Salimans & Ho 2022, section 4.
    """

    def loss(student: nn.Module, batch: Batch) -> mx.array:
        x0, t, labels = batch["x0"], batch["level"], batch.get("labels")
        alpha, std = per_image(schedule.alpha(t), x0), per_image(schedule.std(t), x0)
        x, time = x_from_x0_eps(x0, batch["eps"], alpha, std), t.astype(mx.float32)
        target = mx.stop_gradient(teacher(x, time, labels))
        return weighted_mse(student(x, time, labels), target)

    return loss


def distill_steps(
    student: nn.Module,
    teacher: Velocity,
    data: ImageSet,
    schedule: NoiseSchedule,
    options: StudentOptions,
    checkpoints: Path | None = None,
    identity: str = "",
    notes: dict[str, Any] | None = None,
) -> Iterator[StepRecord]:
    """Train `student` in place by output distillation: one record a step; goes on from `checkpoints` if it holds any.

    Args:
        student: takes (x, t, labels) as the teacher's network does.
        teacher: `guided_velocity(model, scale, null_label)`.
        data: images to put noise on; with labels if the networks take them.
        identity: digest of what the result depends on; checkpoints of another are dropped.
        notes: the caller's own JSON-like dict, kept with the checkpoints.

    Raises: DivergedError, OutOfMemoryError, CheckpointError, as `train_steps`.
    """

    def batch_at(step: int) -> Batch:
        return draw_batch(data, options.batch_size, schedule.num_train_timesteps, options.seed, "output", step)

    return student_steps(student, output_loss(teacher, schedule), batch_at, options, checkpoints, identity, notes)
