"""The one training loop: steps, checkpoints, divergence, speed. The teacher and every student go through it.

A step is a function of its number alone: the batch, its noise, the learning rate and the EMA's decay are all looked up
by step. So a run that was killed and goes on from a checkpoint takes the very steps that it would have taken.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tasks.errors import DivergedError
from mlx_tasks.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint
from mlx_tasks.training.learner import Batch, Learner
from mlx_tasks.training.memory import memory_errors, peak_memory_mb

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step did.

    Attributes:
        step: steps done, this one included (1 is the first).
        loss: mean over the batch, before the update.
        grad_norm: norm of the gradient before clipping.
        learning_rate: of this step.
        images_per_second: batch over the step's own seconds.
        peak_memory_mb: most memory the arrays held since the loop began (MiB).
        seconds: of this step, batch included.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    images_per_second: float
    peak_memory_mb: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What to do at each step.

    Attributes:
        steps: optimiser steps in all.
        batch_at: step index (from 0) -> batch.
        learning_rate_at: step index -> learning rate.
        ema_decay_at: step index -> decay of the averaged weights.
        checkpoint_every: steps between two checkpoints; the last step always has one.
        identity: what the run is a function of (a digest of its params and inputs); a checkpoint of another is dropped.
    """

    steps: int
    batch_at: Callable[[int], Batch]
    learning_rate_at: Callable[[int], float]
    ema_decay_at: Callable[[int], float]
    checkpoint_every: int = 100
    identity: str = ""


def train_steps(
    learner: Learner,
    plan: Plan,
    checkpoints: Path | None = None,
    notes: dict[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[StepRecord]:
    """Records of the steps still to do, one after each; a checkpoint is written after its step's record was taken.

    notes: a JSON-like dict of the caller, saved with every checkpoint and filled from it on resuming, so that what the
        caller gathers from the records (rows of a plot, seconds) survives a kill too.
    Raises: DivergedError before the step is recorded or checkpointed; OutOfMemoryError; CheckpointError; in a ring
        UnavailableError where another rank is gone.
    """
    notes = {} if notes is None else notes
    done, last_finite = 0, None
    if checkpoints is not None:
        done, last_finite = _resume(learner, plan, checkpoints, notes)
    learner.begin()
    mx.reset_peak_memory()
    for index in range(done, plan.steps):
        start = clock()
        rate = plan.learning_rate_at(index)
        with memory_errors(learner.micro_batch):
            batch = plan.batch_at(index)
            loss, norm = (float(value) for value in learner.step(batch, rate, plan.ema_decay_at(index)))
        seconds = clock() - start

        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(index + 1, last_finite, hint=_divergence_hint(checkpoints))
        last_finite = loss
        images = len(next(iter(batch.values())))
        yield StepRecord(index + 1, loss, norm, rate, images / max(seconds, 1e-9), peak_memory_mb(), seconds)

        due = (index + 1) % plan.checkpoint_every == 0 or index + 1 == plan.steps
        if checkpoints is not None and due:
            learner.settle()
            state = {"identity": plan.identity, "last_finite_loss": last_finite, "notes": notes}
            save_checkpoint(checkpoints, index + 1, learner.arrays(), state)


def _resume(learner: Learner, plan: Plan, checkpoints: Path, notes: dict[str, Any]) -> tuple[int, float | None]:
    """(steps done, last finite loss) of the newest whole checkpoint of this very run, taken into the learner."""
    found = load_checkpoint(checkpoints)
    if found is None:
        return 0, None
    if found.state["identity"] != plan.identity or found.step > plan.steps:
        logger.warning("checkpoints=%s dropped='they are of other params or data'", checkpoints)
        clear_checkpoints(checkpoints)
        return 0, None
    learner.restore(found.arrays)
    notes.clear()
    notes.update(found.state["notes"])
    logger.info("resumed=%s step=%d", checkpoints, found.step)
    return found.step, found.state["last_finite_loss"]


def _divergence_hint(checkpoints: Path | None) -> str:
    kept = "" if checkpoints is None else f"; the last good checkpoint is kept in {checkpoints}"
    return f"lower the learning rate or max_grad_norm{kept}"
