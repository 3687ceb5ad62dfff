"""The one task every candidate of the search is given: learn this teacher's velocity from these images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_tasks.config import Config, Search
from mlx_tasks.data.loader import ImageSet, load_split
from mlx_tasks.distillation.output import distill_steps
from mlx_tasks.distillation.student import StudentOptions
from mlx_tasks.distillation.teacher import Velocity, guided_velocity
from mlx_tasks.models.bundle import Bundle, read_bundle
from mlx_tasks.models.unet2d import UNet2DModel
from mlx_tasks.search.objectives import Cost, distillation_error, measure_cost
from mlx_tasks.search.space import Architecture
from mlx_tasks.training.keys import named_key
from mlx_tasks.training.loop import StepRecord

_WARMUP_UPDATES = 20


@dataclass(frozen=True)
class Teaching:
    """A teacher, its images, and the seed that everything random derives from.

    Attributes:
        teacher: the bundle that is learned from.
        guidance_scale: folded into what the student learns; 1.0 for a teacher without an empty label.
        train, validation: images at the teacher's resolution.
        seed: of weights, batches and the error's noise.
    """

    teacher: Bundle
    guidance_scale: float
    train: ImageSet
    validation: ImageSet
    seed: int

    @property
    def scale(self) -> float:
        """The guidance that the teacher can give."""
        return 1.0 if self.teacher.sampler.null_label is None else self.guidance_scale

    @property
    def velocity(self) -> Velocity:
        """The teacher as students see it, guidance included."""
        return guided_velocity(self.teacher.model, self.scale, self.teacher.sampler.null_label)

    def student(self, architecture: Architecture) -> UNet2DModel:
        """A network of that architecture with fresh weights, the same ones for the same seed."""
        sampler = self.teacher.sampler
        config = architecture.unet_config(sampler.resolution, sampler.channels, len(sampler.class_names))
        return UNet2DModel(config, key=named_key(self.seed, "search-weights"))

    def steps(
        self,
        student: UNet2DModel,
        search: Search,
        updates: int,
        micro_batch: int,
        checkpoints: Path | None = None,
        part: str = "trial",
    ) -> Iterator[StepRecord]:
        """Train the student in place for `updates`; goes on from `checkpoints` where those are of this very training.

        part: trial, or final, which sees other batches than the trial did.
        """
        options = StudentOptions(
            updates=updates,
            batch_size=search.batch_size,
            learning_rate=search.learning_rate,
            seed=self.seed + (part != "trial"),
            warmup_updates=min(_WARMUP_UPDATES, updates // 4),
            micro_batch=micro_batch,
            checkpoint_every=search.checkpoint_every,
        )
        # The micro-batch is left out: it changes rounding only, and a retry with a smaller one should go on.
        what = {**asdict(options), "part": part, "network": student.config.to_dict(), "teacher": self.teacher.digest}
        del what["micro_batch"]
        what |= {
            "guidance": self.scale,
            "images": hashlib.sha256(np.ascontiguousarray(self.train.images).data).hexdigest(),
        }
        identity = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        schedule = self.teacher.schedule
        return distill_steps(student, self.velocity, self.train, schedule, options, checkpoints, identity)

    def error(self, student: UNet2DModel) -> float:
        """Root mean square distance of the student's velocity from the teacher's, on the validation split."""
        return distillation_error(student, self.velocity, self.teacher.schedule, self.validation, self.seed)

    def cost(self, student: UNet2DModel, batch: int) -> Cost:
        """What one of the student's evaluations costs here."""
        return measure_cost(student, student, *self._inputs(batch))

    def teacher_cost(self, batch: int) -> Cost:
        """What one of the teacher's evaluations costs here, both guidance branches together."""
        return measure_cost(self.velocity, self.teacher.model, *self._inputs(batch))

    def _inputs(self, batch: int) -> tuple[tuple[int, int, int, int], mx.array | None]:
        sampler = self.teacher.sampler
        classes = len(sampler.class_names)
        labels = mx.arange(batch) % classes if classes else None
        return (batch, sampler.resolution, sampler.resolution, sampler.channels), labels


def read_teaching(work: Path, config: Config) -> Teaching:
    """The teacher and its images, from a workspace's folder of outs.  Raises: DataError if they are not there."""
    teacher = read_bundle(work / "teacher")
    resolution = teacher.sampler.resolution
    train, validation = (load_split(work / "dataset", resolution, split) for split in ("train", "validation"))
    return Teaching(teacher, config.train.guidance_scale, train, validation, config.seed)
