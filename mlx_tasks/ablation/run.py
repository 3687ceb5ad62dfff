"""The runs behind an ablation: workspaces of their own, DVC for the stages, one ruler for all images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.ablation.parts import Part, switched_off
from mlx_tasks.errors import UnavailableError
from mlx_tasks.files import read_json
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.significance import Difference, difference, difference_over_seeds
from mlx_tasks.params import load_config
from mlx_tasks.workspace.opening import open_run
from mlx_tasks.workspace.paths import Places, workspace_path

Tell = Callable[[str], None]
STEPS = 8
"""Sampler steps of the teacher where nothing else says how many."""


@dataclass(frozen=True)
class Result:
    """What switching one part off costs.

    Attributes:
        part: its name.
        summary: what it is.
        whole: Frechet distance with it, the mean over seeds.
        without: Frechet distance without it.
        cost: without less whole, with its interval; "worse" means that the part helps.
        seeds: training seeds.
        samples: images a side.
        why_not: why there is no result, or "".
    """

    part: str
    summary: str
    whole: float | None
    without: float | None
    cost: Difference | None
    seeds: int
    samples: int
    why_not: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.__dict__ | {"cost": self.cost.as_dict() if self.cost else None}


class Ablation:
    """Runs and scores. Everything that is there already is taken as it is, so a killed ablation goes on."""

    def __init__(self, places: Places, preset: str | None, overrides: dict[str, Any], samples: int, tell: Tell) -> None:
        self.places, self.preset, self.overrides, self.samples, self.tell = places, preset, overrides, samples, tell

    @cached_property
    def config(self) -> Any:
        """The whole chain's params."""
        return load_config(self.places.repository, self.preset, self.overrides)

    def results(self, parts: list[Part], seeds: list[int]) -> Iterator[Result]:
        """One result a part, as it is there.

        With one seed the interval is over images (paired noise and labels, bootstrap); with more it is over training
        seeds (Student's), which is what a claim about training needs.
        Raises: UnavailableError naming the stage that failed.
        """
        from mlx_tasks.errors import DataError

        for part in parts:
            try:
                off = switched_off(part, self.config)
            except DataError as error:
                yield Result(part.name, part.summary, None, None, None, 0, 0, str(error))
                continue
            pairs = [self._pair(part, off, seed) for seed in seeds]
            whole, without = ([frechet_distance(p[i], p[2]) for p in pairs] for i in (0, 1))
            if len(seeds) > 1:
                cost = difference_over_seeds(without, whole)
            else:
                cost = difference(pairs[0][1], pairs[0][0], pairs[0][2], frechet_distance, seed=seeds[0])
            means = float(np.mean(whole)), float(np.mean(without))
            yield Result(part.name, part.summary, *means, cost, len(seeds), len(pairs[0][2]))

    def _pair(self, part: Part, off: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (with the part, without it, of real held-out images), rows paired by noise and label."""
        base = self._workspace("whole", {}, seed, part.target)
        other = self._workspace(part.name, off, seed, part.target) if off else base
        real, labels, space = self._real(base)
        drawn = [self._draw(base, part, True, labels, seed), self._draw(other, part, bool(off), labels, seed)]
        return space(drawn[0]), space(drawn[1]), real

    def _workspace(self, name: str, changes: dict[str, Any], seed: int, target: str) -> Path:
        """A workspace whose stages up to the target have run."""
        run_id = f"ablation__{self.preset or 'params'}__{name}__seed{seed}"
        form = {"preset": self.preset, "seed": seed, "overrides": {**self.overrides, **changes}}
        open_run(self.places, run_id, form)
        path = workspace_path(self.places.state, run_id)
        self.tell(f"{name}, seed {seed}: {target}")
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        log = path / ".run" / "ablation.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            command = [sys.executable, "-m", "mlx_tasks.workspace.dvc_walk", "repro", target]
            done = subprocess.run(command, cwd=path, stdout=file, stderr=subprocess.STDOUT, env=environment)
        if done.returncode:
            raise UnavailableError(f"`dvc repro {target}` failed in {path} with {done.returncode}: see {log}")
        return path

    def _real(self, workspace: Path) -> tuple[np.ndarray, np.ndarray | None, Any]:
        from mlx_tasks.data.loader import load_split
        from mlx_tasks.metrics.random_conv import RandomConvFeatures
        from mlx_tasks.metrics.references import held_out_rows

        test = load_split(workspace / "work" / "dataset", self.config.resolution, "test")
        rows = held_out_rows(len(test), self.samples, self.config.seed)
        space = RandomConvFeatures(test.images.shape[-1])
        return space(np.asarray(test.images[rows])), test.labels[rows] if test.class_names else None, space

    def _draw(self, workspace: Path, part: Part, whole: bool, labels: np.ndarray | None, seed: int) -> np.ndarray:
        """Images of the part's subject; without the part where only sampling decides."""
        from mlx_tasks.data.loader import to_uint8
        from mlx_tasks.models.bundle import read_bundle
        from mlx_tasks.samplers.bundle_sampler import bundle_noise, sample_bundle
        from mlx_tasks.samplers.grids import grid_from_timesteps, log_snr_grid, uniform_grid

        work, count = workspace / "work", self.samples if labels is None else len(labels)
        folder, timesteps, solver = work / "teacher", None, None
        if part.subject == "student":
            table = read_json(work / "students" / "table.json")
            steps = int(table["chosen"] or table["students"][0]["steps"])
            if whole:
                folder = work / "students" / f"steps_{steps}"
            else:
                teacher = read_bundle(folder)
                branches = 1 if teacher.sampler.guidance_scale in (0.0, 1.0) else 2
                timesteps, solver = log_snr_grid(teacher.schedule, max(1, steps // branches)).timesteps, "dpmpp_2m"
        elif part.subject == "searched":
            folder = work / "searched"
            rows = [row for row in read_json(work / "schedules" / "schedules.json")["rows"] if row["kept"]]
            row = min(rows, key=lambda one: one["nfe"])
            timesteps, solver = tuple(row["timesteps"]), row["solver"]
        bundle = read_bundle(folder)
        if part.subject == "searched" and not whole and timesteps is not None:
            timesteps = uniform_grid(bundle.schedule, len(timesteps)).timesteps
        if part.subject == "teacher":
            timesteps, solver = log_snr_grid(bundle.schedule, STEPS).timesteps, "dpmpp_2m"
        grid = None if timesteps is None else grid_from_timesteps(bundle.schedule, timesteps)
        noise = bundle_noise(bundle, 900_000 + seed, range(count))
        return to_uint8(np.array(sample_bundle(bundle, noise, labels, grid, solver).images))
