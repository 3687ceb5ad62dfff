"""How any student is trained: the shared loop, a learning rate that falls to zero, no weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_tasks.training.learner import Batch, Learner, Loss
from mlx_tasks.training.learning_rate import linear_decay
from mlx_tasks.training.loop import Plan, StepRecord, train_steps


@dataclass(frozen=True)
class StudentOptions:
    """Numbers of one student's training.

    Attributes:
        updates: optimiser steps.
        batch_size: images of a step.
        learning_rate: peak; linear to zero over the updates.
        seed: of batches, noise and timesteps.
        warmup_updates: updates of linear warm-up; for students that start from random weights.
        micro_batch: most images of one pass; the teacher's passes are cut the same way.
        checkpoint_every: updates between two checkpoints.
        compiled: whether the step is compiled (pays on Metal and CUDA, not on a CPU).
    """

    updates: int
    batch_size: int
    learning_rate: float
    seed: int
    warmup_updates: int = 0
    micro_batch: int = 128
    checkpoint_every: int = 100
    compiled: bool = False


def student_steps(
    student: nn.Module,
    loss: Loss,
    batch_at: Callable[[int], Batch],
    options: StudentOptions,
    checkpoints: Path | None = None,
    identity: str = "",
    notes: dict[str, Any] | None = None,
) -> Iterator[StepRecord]:
    """Train `student` in place; records as `train_steps` gives them, and its errors.

    No average is kept: the rate ends at zero, which settles the weights as an average would.
    """
    learner = Learner(student, loss, weight_decay=0.0, micro_batch=options.micro_batch, compiled=options.compiled)
    plan = Plan(
        steps=options.updates,
        batch_at=batch_at,
        learning_rate_at=lambda step: linear_decay(
            step, options.updates, options.learning_rate, options.warmup_updates
        ),
        ema_decay_at=lambda step: 0.0,
        checkpoint_every=options.checkpoint_every,
        identity=identity,
    )
    return train_steps(learner, plan, checkpoints, notes)
