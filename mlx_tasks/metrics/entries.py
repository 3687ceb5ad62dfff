"""What is scored, in the order of scores.json: reference sets first, then every candidate; and what was left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.config import Evaluate
from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json
from mlx_tasks.metrics.bench import Bench, Row
from mlx_tasks.metrics.candidates import (
    Candidate,
    LeftOut,
    own_candidate,
    schedule_candidates,
    teacher_candidates,
)
from mlx_tasks.metrics.drawing import Drawer, parameter_count
from mlx_tasks.metrics.held_out import HeldOut
from mlx_tasks.metrics.references import (
    blurred,
    class_gaussians,
    class_missing,
    matching_real,
    noise,
    noisy,
)
from mlx_tasks.metrics.shares import entry_cost


@dataclass(frozen=True)
class Entry:
    """One row to be made.

    Attributes:
        name: the row's.
        cost: what it costs to make, in units of `entry_cost`.
        make: the row and its picture, made on a bench.
        kind: teacher, student or searched; empty for a reference set.
        refused: whether it may not win.
    """

    name: str
    cost: float
    make: Callable[[Bench], tuple[Row, bytes]]
    kind: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Entries:
    """All rows to be made.

    Attributes:
        references: name -> a function that makes the set.
        candidates: those that may be drawn.
        left_out: combinations not scored, each with its reason.
    """

    references: dict[str, Callable[[], np.ndarray]]
    candidates: list[Candidate]
    left_out: list[LeftOut]

    @property
    def names(self) -> list[str]:
        """Of all rows, in their order."""
        return [*self.references, *(candidate.name for candidate in self.candidates)]

    def all(self, drawer: Drawer, seeds: int) -> list[Entry]:
        """Every row to be made, in their order.  seeds: noise seeds of a candidate."""
        made = [Entry(name, entry_cost(), _reference(name, draw)) for name, draw in self.references.items()]
        for candidate in self.candidates:
            cost = entry_cost(candidate.nfe, parameter_count(drawer.bundle(candidate.bundle)), seeds)
            made.append(Entry(candidate.name, cost, _candidate(candidate), candidate.kind, bool(candidate.refused)))
        return made


def open_entries(root: Path, settings: Evaluate, held_out: HeldOut, drawer: Drawer, seed: int) -> Entries:
    """What there is to score in a workspace: it depends on bundles, schedules and dataset alone, on every machine.

    Raises: DataError for files of another shape, and labels that the training split lacks.
    """
    candidates, left_out = _candidates(root / "work", settings, drawer)
    references, also_left_out = reference_sets(held_out, seed)
    return Entries(references, candidates, left_out + also_left_out)


def read_refusals(path: Path) -> dict[int, str]:
    """Steps -> why the distillation's gate refused that student.  Raises: DataError for another shape."""
    try:
        return {int(row["steps"]): str(row["reason"]) for row in read_json(path)["students"] if not row["accepted"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not the distill stage's table ({error!r}): run `mlx-tasks distill`") from error


def read_grids(path: Path) -> list[dict[str, Any]]:
    """Budget, grid, solver, timesteps and learned steps of all that the tune stage compared.

    Raises: DataError for another shape.
    """
    keys = ("budget", "grid", "solver", "timesteps")
    try:
        rows = read_json(path)["rows"]
        return [{**{key: row[key] for key in keys}, "learned": row.get("learned")} for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not the tune stage's schedules ({error!r}): run `mlx-tasks tune`") from error


def reference_sets(held_out: HeldOut, seed: int) -> tuple[dict[str, Callable[[], np.ndarray]], list[LeftOut]]:
    """(name -> a function that makes the set, the sets that cannot be made).

    Raises: DataError where the test split has a label that the training split lacks.
    """
    images, labels, wanted = held_out.train.images, held_out.train.labels, held_out.labels
    left_out = []
    missing = sorted(set(wanted.tolist()) - set(labels.tolist()))
    if missing:
        raise DataError(f"the test split has labels {missing} that the training split lacks: run validate again")
    sets: dict[str, Callable[[], np.ndarray]] = {"reference-real": lambda: matching_real(images, labels, wanted, seed)}
    if len(np.unique(wanted)) > 1:
        sets["reference-class-missing"] = lambda: class_missing(images, labels, wanted, seed)
    else:
        left_out.append(LeftOut("reference-class-missing", "there is one class, or there are none"))
    fresh = held_out.validation
    if set(wanted.tolist()) <= set(fresh.labels.tolist()):
        sets["reference-held-out"] = lambda: matching_real(fresh.images, fresh.labels, wanted, seed)
    else:
        left_out.append(LeftOut("reference-held-out", "the validation split lacks a class that the test split has"))
    sets["reference-noisy"] = lambda: noisy(matching_real(images, labels, wanted, seed), seed)
    sets["reference-gaussian"] = lambda: class_gaussians(images, labels, wanted, seed)
    sets["reference-blurred"] = lambda: blurred(matching_real(images, labels, wanted, seed))
    sets["reference-noise"] = lambda: noise(held_out.images.shape, seed)
    return sets, left_out


def _candidates(work: Path, settings: Evaluate, drawer: Drawer) -> tuple[list[Candidate], list[LeftOut]]:
    teacher = drawer.bundle("work/teacher")
    candidates, left_out = teacher_candidates("work/teacher", teacher.sampler, teacher.schedule, settings.nfe)
    refused = read_refusals(work / "students" / "table.json")
    for folder in sorted((work / "students").glob("steps_*"), key=lambda p: -int(p.name.removeprefix("steps_"))):
        steps = int(folder.name.removeprefix("steps_"))
        relative = f"work/students/{folder.name}"
        sampler = drawer.bundle(relative).sampler
        candidates.append(own_candidate(f"student-steps{steps}", "student", relative, sampler, refused.get(steps, "")))
    searched = drawer.bundle("work/searched")
    grids = read_grids(work / "schedules" / "schedules.json")
    more, also_left_out = schedule_candidates("work/searched", searched.sampler, grids)
    return candidates + more, left_out + also_left_out


def _reference(name: str, draw: Callable[[], np.ndarray]) -> Callable[[Bench], tuple[Row, bytes]]:
    return lambda bench: bench.reference_row(name, draw())


def _candidate(candidate: Candidate) -> Callable[[Bench], tuple[Row, bytes]]:
    return lambda bench: bench.candidate_row(candidate)
