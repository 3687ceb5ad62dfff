"""The bench on which every candidate is drawn, timed and scored, so that all rows are made alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_tasks.data.loader import ImageSet, to_uint8
from mlx_tasks.errors import DataError
from mlx_tasks.metrics.candidates import Candidate
from mlx_tasks.metrics.latency import measure_latency
from mlx_tasks.metrics.pictures import class_rows, png_bytes, tile
from mlx_tasks.metrics.scoring import Judge
from mlx_tasks.models.bundle import Bundle, read_bundle
from mlx_tasks.samplers.bundle_sampler import bundle_noise, denoising_strip, sample_bundle
from mlx_tasks.samplers.driver import Samples

STRIP_CLASSES = 6
STRIP_COLUMNS = 8
LATENCY_REPEATS = 3

Row = dict[str, Any]
"""One row of scores.json."""


@dataclass
class Bench:
    """What every row is measured with.

    Attributes:
        judge: the held-out images and the scores against them.
        train: the training split, from which the reference sets are made.
        validation: images that no stage trains on and nothing is scored against.
        labels: (N,) the class of each image wanted, those of the held-out images.
        conditional: whether models are told the class.
        noise_seed: of every candidate's noise: all start from the same.
        root: the workspace, to which bundle folders are relative.
        batch_size: images drawn together.
        latency_batch: images of a timed run.
        seeds: noise seeds of a candidate; its metrics are the first one's, `over_seeds` says what the others gave.
    """

    judge: Judge
    train: ImageSet
    validation: ImageSet
    labels: np.ndarray
    conditional: bool
    noise_seed: int
    root: Path
    batch_size: int
    latency_batch: int
    seeds: int = 1
    _bundles: dict[str, Bundle] = field(default_factory=dict)

    def bundle(self, folder: str) -> Bundle:
        """The bundle of a folder of the workspace, read once."""
        if folder not in self._bundles:
            self._bundles[folder] = read_bundle(self.root / folder)
        return self._bundles[folder]

    def reference_row(self, name: str, images: np.ndarray) -> tuple[Row, bytes]:
        """The row and the picture of a set that no model drew.  images: (N, H, W, C) uint8."""
        started = time.perf_counter()
        row = {
            "candidate": name,
            "kind": "reference",
            "solver": None,
            "grid": None,
            "nfe": 0,
            "steps": 0,
            "refused": "",
            "metrics": {key: estimate.as_dict() for key, estimate in self.judge.scores(images).items()},
            "latency_ms": None,
            "parameters": None,
            "size_mb": None,
            "samples": len(images),
            "seed": self.judge.seed,
        }
        row["seconds"] = time.perf_counter() - started
        return row, self._picture(images)

    def candidate_row(self, candidate: Candidate, rows: Sequence[Row]) -> tuple[Row, bytes]:
        """The row and the picture of a candidate; `rows` are those there already, whose timings may serve again.

        Raises: DataError where sampling cost another number of evaluations than was planned.
        """
        started = time.perf_counter()
        bundle, count = self.bundle(candidate.bundle), len(self.judge.real)
        drawn = self._draw(candidate, range(count), self.batch_size)
        if drawn.nfe != candidate.nfe:
            raise DataError(f"{candidate.name} cost {drawn.nfe} evaluations and {candidate.nfe} were planned")
        images = to_uint8(np.array(drawn.images))
        latency = self._latency(candidate, rows)
        scores = {key: estimate.as_dict() for key, estimate in self.judge.scores(images).items()}
        low, middle, high = latency["low_ms"], latency["median_ms"], latency["high_ms"]
        scores["latency_ms"] = {"value": middle, "low": low, "high": high}
        scores["images_per_second"] = {"value": 1000 / middle, "low": 1000 / high, "high": 1000 / low}
        weights = self.root / candidate.bundle / "unet" / "diffusion_pytorch_model.safetensors"
        row = {
            "candidate": candidate.name,
            "kind": candidate.kind,
            "solver": candidate.solver,
            "grid": candidate.grid,
            "nfe": candidate.nfe,
            "steps": len(candidate.timesteps),
            "timesteps": list(candidate.timesteps),
            "learned": candidate.learned.to_dict() if candidate.learned else None,
            "guidance_scale": candidate.guidance_scale,
            "bundle": candidate.bundle,
            "bundle_digest": bundle.digest,
            "refused": candidate.refused,
            "metrics": scores,
            "over_seeds": self._over_seeds(candidate, scores),
            "per_class": self.judge.per_class(images, self.labels, bundle.sampler.class_names)
            if self.conditional
            else {},
            "latency_ms": middle,
            "latency": latency,
            "parameters": sum(value.size for _, value in tree_flatten(bundle.model.parameters())),
            "size_mb": weights.stat().st_size / 2**20,
            "samples": count,
            "seed": self.noise_seed,
        }
        row["seconds"] = time.perf_counter() - started
        return row, self._picture(images)

    def strip(self, candidate: Candidate) -> bytes:
        """PNG of a candidate's x0 estimates on the way to an image, a row for each of the first classes."""
        if self.conditional:
            first = [int(np.flatnonzero(self.labels == c)[0]) for c in np.unique(self.labels)[:STRIP_CLASSES]]
        else:
            first = list(range(min(STRIP_CLASSES, len(self.labels))))
        bundle = self.bundle(candidate.bundle)
        strip = denoising_strip(
            bundle,
            bundle_noise(bundle, self.noise_seed, first),
            self.labels[first] if self.conditional else None,
            candidate.steps(bundle.schedule),
            candidate.solver,
            STRIP_COLUMNS,
            candidate.guidance_scale,
        )
        return png_bytes(tile(to_uint8(np.array(strip.images))))

    def _over_seeds(self, candidate: Candidate, first: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """{metric: {mean, low, high, values}} over the noise seeds, with Student's 95 % interval; {} for one seed."""
        if self.seeds < 2:
            return {}
        from scipy.stats import t

        values = {
            name: [one["value"]] for name, one in first.items() if name not in ("latency_ms", "images_per_second")
        }
        for seed in range(1, self.seeds):
            drawn = self._draw(candidate, range(len(self.judge.real)), self.batch_size, seed)
            for name, estimate in self.judge.scores(to_uint8(np.array(drawn.images))).items():
                values[name].append(estimate.value)
        told = {}
        for name, found in values.items():
            mean = float(np.mean(found))
            half = float(t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / len(found) ** 0.5)
            told[name] = {"mean": mean, "low": mean - half, "high": mean + half, "values": found}
        return told

    def _draw(self, candidate: Candidate, indices: range, batch_size: int, seed: int = 0) -> Samples:
        """Images of the noises and labels with these indices, the labels taken again from the start past the last.

        seed: 0 for the noise that all candidates share, above for other noises that they share as well.
        """
        bundle = self.bundle(candidate.bundle)
        return sample_bundle(
            bundle,
            bundle_noise(bundle, (self.noise_seed + seed) % 2**32, indices),
            self.labels[np.array(indices) % len(self.labels)] if self.conditional else None,
            candidate.steps(bundle.schedule),
            candidate.solver,
            batch_size,
            candidate.guidance_scale,
        )

    def _latency(self, candidate: Candidate, rows: Sequence[Row]) -> dict[str, Any]:
        """Timed once for all grids of one bundle that cost the same: equal work must not race by chance."""
        same = ("bundle", "nfe", "guidance_scale")
        for row in rows:
            alike = row["kind"] != "reference" and all(row[key] == getattr(candidate, key) for key in same)
            if alike and _work(row["solver"]) == _work(candidate.solver):
                return row["latency"]
        batch = self.latency_batch

        def run() -> None:
            mx.eval(self._draw(candidate, range(batch), batch).images)

        return asdict(measure_latency(run, batch, LATENCY_REPEATS))

    def _picture(self, images: np.ndarray) -> bytes:
        return png_bytes(tile(class_rows(images, self.labels if self.conditional else None)))


def _work(solver: str) -> str:
    """Solvers of the same work by one name: learned steps are multistep ones with other numbers."""
    return "dpmpp_2m" if solver == "learned" else solver
