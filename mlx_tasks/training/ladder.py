"""The ladder of resolutions: one fully convolutional network, small images first, each rung with its own warm-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_tasks.data.loader import ImageSet
from mlx_tasks.diffusion.guidance import drop_labels
from mlx_tasks.training.batches import draw_batch
from mlx_tasks.training.ema import ema_decay
from mlx_tasks.training.keys import named_key
from mlx_tasks.training.learner import Batch
from mlx_tasks.training.learning_rate import warmup_cosine
from mlx_tasks.training.loop import Plan


@dataclass(frozen=True)
class Rung:
    """One rung.

    Attributes:
        index: its place, 0 first.
        resolution: image side (pixels).
        start: step index of its first step, over the whole ladder.
        steps: how many it has.
    """

    index: int
    resolution: int
    start: int
    steps: int


@dataclass(frozen=True)
class TeacherOptions:
    """Numbers of the teacher's training; names and meanings are those of params.yaml's `train` branch."""

    batch_size: int
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    label_dropout: float
    num_train_timesteps: int
    seed: int
    checkpoint_every: int


def rungs(ladder: Sequence[tuple[int, int]]) -> list[Rung]:
    """The rungs of ((resolution, steps), ...)."""
    found, start = [], 0
    for index, (resolution, steps) in enumerate(ladder):
        found.append(Rung(index, resolution, start, steps))
        start += steps
    return found


def rung_at(ladder: Sequence[Rung], step: int) -> Rung:
    """The rung of step index `step`.  Raises: ValueError past the ladder's end."""
    for rung in ladder:
        if rung.start <= step < rung.start + rung.steps:
            return rung
    raise ValueError(f"step {step} is not on the ladder of {sum(r.steps for r in ladder)} steps")


def ladder_plan(
    ladder: Sequence[Rung],
    data: Mapping[int, ImageSet],
    null_label: int | None,
    options: TeacherOptions,
    identity: str = "",
) -> Plan:
    """The whole ladder as one plan of steps. The optimiser's memory goes from rung to rung; rates start anew on each.

    data: resolution -> its images. null_label: the empty label, or None for data without labels.
    """

    def batch_at(step: int) -> Batch:
        rung = rung_at(ladder, step)
        name = f"train-{rung.resolution}"
        batch = draw_batch(
            data[rung.resolution], options.batch_size, options.num_train_timesteps, options.seed, name, step
        )
        if null_label is not None:
            known = mx.where(batch["labels"] < 0, null_label, batch["labels"])
            key = named_key(options.seed, name, step, "dropout")
            batch["labels"] = drop_labels(known, null_label, options.label_dropout, key)
        return batch

    def learning_rate_at(step: int) -> float:
        rung = rung_at(ladder, step)
        return warmup_cosine(step - rung.start, rung.steps, options.learning_rate, options.warmup_steps)

    return Plan(
        steps=sum(rung.steps for rung in ladder),
        batch_at=batch_at,
        learning_rate_at=learning_rate_at,
        ema_decay_at=lambda step: ema_decay(step - rung_at(ladder, step).start, options.ema_decay),
        checkpoint_every=options.checkpoint_every,
        identity=identity,
    )
