"""Stage `distill`: students of ever fewer steps, from work/dataset and work/teacher.

work/students/steps_{N}/   a bundle each; the refused one too
work/students/table.json   {teacher: [rows], students: [rows], chosen, gate}; a row: name, steps, nfe, solver,
                           frechet_distance {value, low, high}, parameters, size_mb, latency_ms (an image, in batches
                           of latency_batch), train_seconds, accepted, reason. `chosen` is the fewest accepted steps,
                           null without any.
work/metrics/distill.json  the table's main figures
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks.data.loader import ImageSet, load_split, to_uint8
from mlx_tasks.distillation.gate import Judge, judge_student
from mlx_tasks.distillation.progressive import halving_steps
from mlx_tasks.distillation.student import StudentOptions
from mlx_tasks.distillation.teacher import guided_velocity
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, read_json, write_json
from mlx_tasks.metrics.latency import measure_latency
from mlx_tasks.metrics.pictures import class_rows, tile
from mlx_tasks.models.bundle import Bundle, read_bundle, write_bundle
from mlx_tasks.models.unet2d import UNet2DModel
from mlx_tasks.samplers import keyed_noise, sample_bundle, uniform_grid
from mlx_tasks.stages.context import StageContext
from mlx_tasks.training.checkpoint import clear_checkpoints
from mlx_tasks.training.ema import flat_arrays
from mlx_tasks.training.identity import identity_of
from mlx_tasks.training.memory import micro_batch_limit

LATENCY_BATCH = 16
_LATENCY_REPEATS = 5
_ZOOM = 3

Row = dict[str, Any]


def run(context: StageContext) -> None:
    """Halve until the gate refuses or target_steps is reached; go on from the last finished student, or inside one.

    Raises: DataError for inputs that are not whole; DivergedError, OutOfMemoryError, CheckpointError.
    """
    Halving(context).run()


class Halving:
    """One run of the stage."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.teacher = read_bundle(context.work / "teacher")
        sampler = self.teacher.sampler
        self.scale = 1.0 if sampler.null_label is None else context.config.train.guidance_scale
        dataset, side = context.work / "dataset", sampler.resolution
        self.data = load_split(dataset, side, "train")
        self.fingerprint = str(read_json(dataset / "summary.json")["fingerprint"])
        self.judge, self.judged_on = self._judge(self.data, load_split(dataset, side, "validation"))

    def run(self) -> None:
        """Make the students and write the table."""
        distill, finished = self.context.config.distill, self.context.checkpoints / "finished"
        reference = self._many_step_row()
        teachers, students = [reference, self._own_row()], []
        limit = reference["frechet_distance"]["value"]
        source = self.teacher
        for steps in distill.step_counts:
            folder = finished / f"steps_{steps}"
            row = self._finished(folder, source)
            if row is None:
                row = self._make(source, steps, folder, limit)
            students.append(row)
            self._tell(row, read_bundle(folder))
            if not row["accepted"]:
                break
            source = read_bundle(folder)
        accepted = [row["steps"] for row in students if row["accepted"]]
        self._write(finished, teachers, students, min(accepted, default=None))
        clear_checkpoints(self.context.checkpoints)

    def _make(self, source: Bundle, steps: int, folder: Path, teacher_distance: float) -> Row:
        """Train the student of `steps` from `source`, judge it, and put it into `folder`."""
        context, distill = self.context, self.context.config.distill
        first = source is self.teacher
        velocity = guided_velocity(source.model, self.scale if first else 1.0, source.sampler.null_label)
        student = UNet2DModel(source.model.config)
        student.update(source.model.parameters())
        options = StudentOptions(
            updates=distill.updates,
            batch_size=distill.batch_size,
            learning_rate=distill.learning_rate,
            seed=context.config.seed,
            micro_batch=micro_batch_limit(context.hardware.max_micro_batch),
            checkpoint_every=distill.checkpoint_every,
            compiled=context.hardware.kind != "cpu",
        )
        identity, notes = self._identity(source), {"seconds": 0.0}
        checkpoints = context.checkpoints / f"steps_{steps}"
        done = distill.updates * distill.step_counts.index(steps)
        for record in halving_steps(
            student, velocity, self.data, self.teacher.schedule, steps, options, checkpoints, identity, notes
        ):
            notes["seconds"] += record.seconds
            context.tracker.metrics(
                {
                    f"distill/loss_{steps}": record.loss,
                    "distill/learning_rate": record.learning_rate,
                    "distill/images_per_second": record.images_per_second,
                    "distill/peak_memory_mb": record.peak_memory_mb,
                    "distill/grad_norm": record.grad_norm,
                },
                done + record.step,
            )
            context.progress.update(record.step, distill.updates, phase=f"to {steps} steps", loss=record.loss)

        sampler = replace(
            self.teacher.sampler,
            solver="ddim",
            timesteps=uniform_grid(self.teacher.schedule, steps).timesteps,
            guidance_scale=1.0,
            nfe=steps,
            null_label=None,
        )
        row = self._measured(f"steps_{steps}", Bundle(student, self.teacher.schedule, sampler))
        verdict = judge_student(row["frechet_distance"]["value"], teacher_distance, distill.max_quality_loss)
        row |= {"train_seconds": notes["seconds"], "accepted": verdict.accepted, "reason": verdict.reason}
        lineage = {"stage": "distill", "teacher": self.teacher.digest, "source": source.digest, "identity": identity}
        lineage |= {"steps": steps, "updates": distill.updates, "guidance_scale": self.scale}
        write_bundle(folder, student, self.teacher.schedule, sampler, lineage)
        row["size_mb"] = _size_mb(folder)
        write_json(folder.with_suffix(".json"), {"identity": identity, "row": row})
        clear_checkpoints(checkpoints)
        return row

    def _finished(self, folder: Path, source: Bundle) -> Row | None:
        """The row of a student that an earlier, killed run of this very stage finished, if its bundle is whole."""
        try:
            kept = read_json(folder.with_suffix(".json"))
            read_bundle(folder)
        except (OSError, ValueError):
            return None
        return kept["row"] if kept["identity"] == self._identity(source) else None

    def _judge(self, train: ImageSet, validation: ImageSet) -> tuple[Judge, str]:
        """The gate's judge. Held-out images if there are enough, else training images, which every sampler knows."""
        wanted, seed = self.context.config.distill.gate_samples, self.context.config.seed
        name, data = ("validation", validation) if len(validation) >= wanted else ("train", train)
        if len(data) < 2:
            raise DataError(f"the gate needs images, and the {name} split has {len(data)}: add some")
        chosen = np.sort(np.random.default_rng([seed, 1]).permutation(len(data))[:wanted])
        images, labels = data.images[chosen], data.labels[chosen]
        noise = keyed_noise(seed, len(images), images.shape[1:])
        return Judge(images, noise, mx.array(labels) if data.class_names else None, seed), name

    def _many_step_row(self) -> Row:
        """The teacher as the first student sees it: DDIM, twice the first student's steps, guided."""
        steps = 2 * self.context.config.distill.start_steps
        timesteps = uniform_grid(self.teacher.schedule, steps).timesteps
        nfe = steps * (1 if self.scale in (0.0, 1.0) else 2)
        sampler = replace(self.teacher.sampler, solver="ddim", timesteps=timesteps, guidance_scale=self.scale, nfe=nfe)
        return self._reference_row("teacher", replace(self.teacher, sampler=sampler))

    def _own_row(self) -> Row:
        """The teacher as its own bundle says."""
        return self._reference_row("teacher_own_sampler", self.teacher)

    def _reference_row(self, name: str, bundle: Bundle) -> Row:
        """A teacher's row, kept in the checkpoints: it costs as much as a student's training."""
        path = self.context.checkpoints / f"{name}.json"
        identity = self._identity(bundle)
        try:
            kept = read_json(path)
            if kept["identity"] == identity:
                return kept["row"]
        except (OSError, ValueError, KeyError):
            pass
        self.context.progress.say(f"drawing {len(self.judge.noise)} images with the {name}")
        row = self._measured(name, bundle) | {"size_mb": _size_mb(self.context.work / "teacher")}
        row |= {"train_seconds": None, "accepted": None, "reason": "reference"}
        write_json(path, {"identity": identity, "row": row})
        return row

    def _measured(self, name: str, bundle: Bundle) -> Row:
        distance = self.judge.frechet_distance(lambda noise, labels: sample_bundle(bundle, noise, labels).images)
        batch = min(LATENCY_BATCH, len(self.judge.noise))
        noise = self.judge.noise[:batch]
        labels = None if self.judge.labels is None else self.judge.labels[:batch]
        latency = measure_latency(lambda: sample_bundle(bundle, noise, labels), batch, _LATENCY_REPEATS)
        return {
            "name": name,
            "steps": len(bundle.sampler.timesteps),
            "nfe": bundle.sampler.nfe,
            "solver": bundle.sampler.solver,
            "frechet_distance": distance.as_dict(),
            "parameters": sum(array.size for array in flat_arrays(bundle.model.parameters()).values()),
            "latency_ms": latency.median_ms,
            "latency_batch": batch,
        }

    def _tell(self, row: Row, bundle: Bundle) -> None:
        distance, steps = row["frechet_distance"]["value"], row["steps"]
        self.context.tracker.metrics(
            {"distill/frechet_distance": distance, "distill/latency_ms": row["latency_ms"]}, steps
        )
        self.context.progress.say(f"{steps} steps {'accepted' if row['accepted'] else 'refused'}: {row['reason']}")
        classes = len(bundle.sampler.class_names)
        labels = np.repeat(np.arange(min(classes, 16)), 4) if classes else None
        count = 16 if labels is None else len(labels)
        shape = (bundle.sampler.resolution, bundle.sampler.resolution, bundle.sampler.channels)
        drawn = sample_bundle(bundle, keyed_noise(self.context.config.seed, count, shape), labels).images
        sheet = tile(class_rows(to_uint8(np.array(drawn)), labels, columns=4))
        self.context.tracker.image(f"distill/samples_{steps}", sheet.repeat(_ZOOM, 0).repeat(_ZOOM, 1), 0)

    def _write(self, finished: Path, teachers: list[Row], students: list[Row], chosen: int | None) -> None:
        distill, work = self.context.config.distill, self.context.work
        gate = {"max_quality_loss": distill.max_quality_loss, "samples": len(self.judge.noise), "split": self.judged_on}
        with atomic_folder(work / "students") as fresh:
            for row in students:
                shutil.copytree(finished / row["name"], fresh / row["name"])
            table = {"teacher": teachers, "students": students, "chosen": chosen, "gate": gate}
            write_json(fresh / "table.json", table)
        metrics: dict[str, Any] = {
            "chosen_steps": chosen,
            "teacher_frechet_distance": teachers[0]["frechet_distance"]["value"],
            "seconds": sum(row["train_seconds"] for row in students),
        }
        for row in students:
            metrics[f"frechet_distance_{row['steps']}"] = row["frechet_distance"]["value"]
            metrics[f"latency_ms_{row['steps']}"] = row["latency_ms"]
        write_json(work / "metrics" / "distill.json", metrics)
        if chosen is None:
            self.context.progress.say("no student was accepted: raise distill.updates or distill.max_quality_loss")

    def _identity(self, source: Bundle) -> str:
        """Digest of all that a row depends on. How often to checkpoint is not part of it."""
        config = self.context.config
        return identity_of(
            seed=config.seed,
            distill=config.distill.model_dump(mode="json", exclude={"checkpoint_every", "target_steps"}),
            guidance_scale=self.scale,
            teacher=self.teacher.digest,
            source=source.digest,
            sampler=source.sampler.to_dict(),
            dataset=self.fingerprint,
        )


def _size_mb(bundle: Path) -> float:
    """Size of a bundle's weights (MiB)."""
    return sum(path.stat().st_size for path in bundle.rglob("*.safetensors")) / 2**20
