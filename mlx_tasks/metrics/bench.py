"""The bench on which every candidate is drawn and scored, so that all rows are made alike, wherever they are made.

A row's latency is not measured here: `timing.py` does that for all rows on one machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.candidates import Candidate
from mlx_tasks.metrics.drawing import Drawer, drawn_images, parameter_count
from mlx_tasks.metrics.held_out import HeldOut
from mlx_tasks.metrics.pictures import class_rows, png_bytes, tile
from mlx_tasks.metrics.scoring import Judge

Row = dict[str, Any]
"""One row of scores.json."""


@dataclass(frozen=True)
class Bench:
    """What every row is measured with.

    Attributes:
        judge: the scores against the held-out images.
        held_out: those images.
        drawer: draws the candidates.
        seeds: noise seeds of a candidate; its metrics are the first one's, `over_seeds` says what the others gave.
    """

    judge: Judge
    held_out: HeldOut
    drawer: Drawer
    seeds: int = 1

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

    def candidate_row(self, candidate: Candidate) -> tuple[Row, bytes]:
        """The row and the picture of a candidate, its latency still to be measured (None).

        Raises: DataError where sampling cost another number of evaluations than was planned.
        """
        started = time.perf_counter()
        bundle, count = self.drawer.bundle(candidate.bundle), len(self.held_out)
        drawn = self.drawer.draw(candidate, range(count))
        if drawn.nfe != candidate.nfe:
            raise DataError(f"{candidate.name} cost {drawn.nfe} evaluations and {candidate.nfe} were planned")
        images = drawn_images(drawn)
        scores = {key: estimate.as_dict() for key, estimate in self.judge.scores(images).items()}
        weights = self.drawer.root / candidate.bundle / "unet" / "diffusion_pytorch_model.safetensors"
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
            "per_class": self.judge.per_class(images, self.held_out.labels, bundle.sampler.class_names)
            if self.held_out.conditional
            else {},
            "latency_ms": None,
            "latency": None,
            "parameters": parameter_count(bundle),
            "size_mb": weights.stat().st_size / 2**20,
            "samples": count,
            "seed": self.drawer.noise_seed,
        }
        row["seconds"] = time.perf_counter() - started
        return row, self._picture(images)

    def _over_seeds(self, candidate: Candidate, first: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """{metric: {mean, low, high, values}} over the noise seeds, with Student's 95 % interval; {} for one seed."""
        if self.seeds < 2:
            return {}
        from scipy.stats import t

        values = {name: [one["value"]] for name, one in first.items()}
        for seed in range(1, self.seeds):
            drawn = self.drawer.draw(candidate, range(len(self.held_out)), seed=seed)
            for name, estimate in self.judge.scores(drawn_images(drawn)).items():
                values[name].append(estimate.value)
        told = {}
        for name, found in values.items():
            mean = float(np.mean(found))
            half = float(t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / len(found) ** 0.5)
            told[name] = {"mean": mean, "low": mean - half, "high": mean + half, "values": found}
        return told

    def _picture(self, images: np.ndarray) -> bytes:
        return png_bytes(tile(class_rows(images, self.held_out.labels if self.held_out.conditional else None)))
