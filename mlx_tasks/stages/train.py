"""Stage `train`: the teacher. work/dataset -> work/teacher, work/metrics/train.json, work/plots/train.csv."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks.data.loader import load_split, to_uint8
from mlx_tasks.diffusion.learned_schedule import LearnedSchedule, learned_schedule
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_write_text, read_json, write_json
from mlx_tasks.hosts.members import Members
from mlx_tasks.hosts.places import Host, machines, ordered
from mlx_tasks.metrics.pictures import tile
from mlx_tasks.models.bundle import Sampler, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers import keyed_noise, log_snr_grid, network_denoiser, sample, uniform_grid
from mlx_tasks.stages.context import StageContext
from mlx_tasks.training.checkpoint import clear_checkpoints
from mlx_tasks.training.ema import flat_arrays
from mlx_tasks.training.identity import identity_of
from mlx_tasks.training.keys import named_key
from mlx_tasks.training.ladder import Rung, TeacherOptions, ladder_plan, rung_at, rungs
from mlx_tasks.training.learner import Batch
from mlx_tasks.training.loop import StepRecord, train_steps
from mlx_tasks.training.memory import micro_batch_limit
from mlx_tasks.training.schedule_learning import EVERY, follow, measure
from mlx_tasks.training.teacher import named_schedule, teacher_learner
from mlx_tasks.training.validation import validation_loss

TEACHER_STEPS = 10
"""DPM-Solver++(2M) steps that the teacher's bundle asks for; as good as DDIM at 200 on digits."""

_PLOT_ROWS = 2000
_GRID_ROWS, _GRID_COLUMNS, _GRID_STEPS, _ZOOM = 16, 4, 8, 3


def run(context: StageContext) -> None:
    """Train the teacher; go on from a checkpoint where there is one.

    Raises: DataError for a dataset folder that is not whole; DivergedError, OutOfMemoryError, CheckpointError.
    """
    Teaching(context).run()


class Teaching:
    """One run of the stage."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        config, dataset = context.config, context.work / "dataset"
        self.train = {r: load_split(dataset, r, "train") for r in config.train.resolutions}
        self.validation = {r: load_split(dataset, r, "validation") for r in config.train.resolutions}
        last = self.train[config.resolution]
        if not len(last):
            raise DataError(f"{dataset} has no training images: look at work/metrics/validate.json")
        self.fingerprint = str(read_json(dataset / "summary.json")["fingerprint"])
        self.class_names, self.channels = last.class_names, last.images.shape[-1]
        self.null_label = len(self.class_names) if self.class_names else None
        self.scale = config.train.guidance_scale if self.class_names else 1.0
        self.ladder = rungs(config.train.ladder)
        self.reference = named_schedule(config.train.noise_schedule, config.train.zero_terminal_snr)
        act_fn = context.hardware.act_fn if config.model.act_fn == "auto" else config.model.act_fn
        shape = UNet2DConfig.build(
            config.model, config.resolution, self.channels, len(self.class_names) or None, act_fn
        )
        self.model = UNet2DModel(shape, key=named_key(config.seed, "weights"))
        self.options = {
            "min_snr_gamma": config.train.min_snr_gamma,
            "weight_decay": config.train.weight_decay,
            "max_grad_norm": config.train.max_grad_norm,
        }
        self.learner = teacher_learner(
            self.model,
            self.reference,
            **self.options,
            micro_batch=micro_batch_limit(context.hardware.max_micro_batch),
            compiled=context.hardware.kind != "cpu",
        )
        self.hosts: list[Host] = ordered(machines(config.train).hosts)
        self.notes: dict[str, Any] = {"rows": [], "validation": {}, "seconds": 0.0, "peak_memory_mb": 0.0, "recent": []}

    def run(self) -> None:
        """Train to the ladder's end and write what came of it."""
        train, context = self.context.config.train, self.context
        options = TeacherOptions(
            batch_size=train.batch_size,
            learning_rate=train.learning_rate,
            warmup_steps=train.warmup_steps,
            ema_decay=train.ema_decay,
            label_dropout=train.label_dropout,
            num_train_timesteps=self.reference.num_train_timesteps,
            seed=context.config.seed,
            checkpoint_every=train.checkpoint_every,
        )
        plan = ladder_plan(self.ladder, self.train, self.null_label, options, self._identity())
        if self.learning_schedule:
            plan = replace(plan, batch_at=lambda step, plain=plan.batch_at: self._followed(plain(step)))
        context.tracker.params({"train/parameters": self._parameters(), "train/act_fn": self.model.config.act_fn})
        with self._other_ranks():
            for record in train_steps(self.learner, plan, context.checkpoints, self.notes):
                self._tell(record, plan.steps)
                if self.learning_schedule and record.step % EVERY == 0 and record.step <= plan.steps // 2:
                    self._learn_schedule(record.step)
                rung = rung_at(self.ladder, record.step - 1)
                if record.step % train.sample_every == 0 or record.step == rung.start + rung.steps:
                    self._look(record.step, rung)
        self._write(plan.steps)
        clear_checkpoints(context.checkpoints)

    @contextlib.contextmanager
    def _other_ranks(self) -> Iterator[None]:
        """For the block the learner has the machines of train.hosts to share its batches with, if there are any."""
        if not self.hosts:
            yield
            return
        train = self.context.config.train
        job = {
            "network": self.model.config.to_dict(),
            "noise_schedule": train.noise_schedule,
            "zero_terminal_snr": train.zero_terminal_snr,
            "options": self.options,
            "micro_batch": micro_batch_limit(train.batch_size),
        }
        with Members(self.hosts, train, job, self.context.progress.say) as members:
            self.learner.ring = members.ring
            yield
        self.learner.ring = None

    @property
    def learning_schedule(self) -> bool:
        """Whether the noise schedule is learned with the model."""
        return self.context.config.train.noise_schedule == "learned"

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule as it stands."""
        learned = self._learned()
        return self.reference if learned is None else learned.schedule

    def _learned(self) -> LearnedSchedule | None:
        """From the moments in the notes, which a checkpoint keeps."""
        moments = tuple(self.notes.get("schedule_moments") or ())
        return _schedule_of(self.reference, moments) if moments else None

    def _followed(self, batch: Batch) -> Batch:
        learned = self._learned()
        return batch if learned is None else follow(batch, learned)

    def _learn_schedule(self, step: int) -> None:
        """One more measurement, with the raw weights: they are what is trained."""
        train, data = self.context.config.train, self.train[rung_at(self.ladder, step - 1).resolution]
        self.notes["schedule_moments"] = measure(
            self.model,
            self.schedule,
            self.reference,
            data,
            self.null_label,
            train.min_snr_gamma,
            self.notes.get("schedule_moments"),
            self.context.config.seed,
            step,
        )

    def _tell(self, record: StepRecord, steps: int) -> None:
        rung, notes = rung_at(self.ladder, record.step - 1), self.notes
        if record.step == 1 or record.step % max(1, steps // _PLOT_ROWS) == 0:
            notes["rows"].append(
                [record.step, rung.resolution, record.loss, record.learning_rate, record.images_per_second]
            )
        notes["seconds"] += record.seconds
        notes["peak_memory_mb"] = max(notes["peak_memory_mb"], record.peak_memory_mb)
        notes["recent"] = [*notes["recent"][-49:], record.loss]
        self.context.tracker.metrics(
            {
                "train/loss": record.loss,
                "train/learning_rate": record.learning_rate,
                "train/images_per_second": record.images_per_second,
                "train/peak_memory_mb": record.peak_memory_mb,
                "train/grad_norm": record.grad_norm,
            },
            record.step,
        )
        self.context.progress.update(
            record.step, steps, phase=f"{rung.resolution} px", loss=record.loss, images_per_s=record.images_per_second
        )

    def _look(self, step: int, rung: Rung) -> None:
        """Validation loss and a sample grid with the averaged weights, from the same noise every time."""
        with self.learner.ema.applied(self.model):
            loss = validation_loss(
                self.model,
                lambda model, batch: self.learner.loss(model, self._followed(batch)),
                self.validation[rung.resolution],
                self.reference.num_train_timesteps,
                self.context.config.seed,
                self.learner.micro_batch,
            )
            picture = self._samples(rung.resolution)
        if loss is not None:
            self.notes["validation"][str(rung.resolution)] = loss
            self.context.tracker.metrics({"train/validation_loss": loss}, step)
        self.context.tracker.image("train/samples", picture, step)

    def _samples(self, side: int) -> np.ndarray:
        """(H, W, C) uint8, enlarged: a row a class, drawn with DDIM."""
        rows = min(len(self.class_names), _GRID_ROWS) or _GRID_COLUMNS
        noise = keyed_noise(self.context.config.seed, rows * _GRID_COLUMNS, (side, side, self.channels))
        labels = mx.repeat(mx.arange(rows), _GRID_COLUMNS) if self.class_names else None
        denoise = network_denoiser(self.model, self.schedule, labels, self.scale, self.null_label)
        images = to_uint8(np.array(sample(denoise, noise, uniform_grid(self.schedule, _GRID_STEPS)).images))
        sheet = tile(images.reshape(rows, _GRID_COLUMNS, side, side, self.channels))
        return sheet.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)

    def _write(self, steps: int) -> None:
        config, work, notes = self.context.config, self.context.work, self.notes
        branches = 1 if self.scale in (0.0, 1.0) else 2
        sampler = Sampler(
            solver="dpmpp_2m",
            timesteps=log_snr_grid(self.schedule, TEACHER_STEPS).timesteps,
            guidance_scale=self.scale,
            nfe=branches * TEACHER_STEPS,
            resolution=config.resolution,
            channels=self.channels,
            class_names=tuple(self.class_names),
            null_label=self.null_label,
        )
        lineage = {
            "stage": "train",
            "dataset_fingerprint": self.fingerprint,
            "params_digest": self._identity(),
            "steps": steps,
            "seed": config.seed,
            "device": self.context.hardware.as_dict(),
        }
        if self.hosts:
            lineage["ranks"] = len(self.hosts)
        with self.learner.ema.applied(self.model):
            write_bundle(work / "teacher", self.model, self.schedule, sampler, lineage)
        metrics = {
            "steps": steps,
            "train_loss": float(np.mean(notes["recent"])),
            "validation_loss": notes["validation"],
            "seconds": notes["seconds"],
            "images_per_second": steps * config.train.batch_size / max(notes["seconds"], 1e-9),
            "peak_memory_mb": notes["peak_memory_mb"],
            "parameters": self._parameters(),
        }
        write_json(work / "metrics" / "train.json", metrics)
        _write_plot(work / "plots" / "train.csv", notes["rows"])

    def _identity(self) -> str:
        """Digest of all that the weights depend on: not where it is computed, nor how often to checkpoint or look."""
        config = self.context.config
        where = {name for name in type(config.train).model_fields if name.startswith("hosts")}
        left_out = {"checkpoint_every", "sample_every", "guidance_scale"} | where
        train = config.train.model_dump(mode="json", exclude=left_out)
        return identity_of(seed=config.seed, train=train, network=self.model.config.to_dict(), dataset=self.fingerprint)

    def _parameters(self) -> int:
        return sum(array.size for array in flat_arrays(self.model.parameters()).values())


@functools.lru_cache(maxsize=2)
def _schedule_of(reference: NoiseSchedule, moments: tuple[float, ...]) -> LearnedSchedule:
    return learned_schedule(reference, moments)


def _write_plot(path: Path, rows: list[list[float]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["step", "rung", "loss", "learning_rate", "images_per_second"])
    writer.writerows(rows)
    atomic_write_text(path, buffer.getvalue())
