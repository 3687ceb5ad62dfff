"""Running mean and covariance of features: bounded memory for any number of images, mergeable, saved under a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, atomic_write_bytes, read_json, write_json
from mlx_tasks.metrics.frechet import gaussian_frechet_distance

_ARRAYS, _FACTS = "moments.safetensors", "moments.json"


@dataclass
class Moments:
    """Count, mean and scatter matrix of the rows seen so far, in float64.

    Attributes:
        identity: of the extractor (extractors/base.py) and its preprocessing: only equal ones meet.
        count: rows.
        mean: (D,).
        scatter: (D, D), the sum of (x - mean)(x - mean)^T.
        data: SHA-256 (hex) over the batches' bytes, in their order; of a merged one over both hashes.
    """

    identity: dict[str, Any]
    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scatter: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    data: str = ""

    def update(self, features: np.ndarray) -> None:
        """Take in more rows (N, D).  Raises: ValueError for another width or numbers that are not finite."""
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or (self.count and rows.shape[1] != len(self.mean)):
            raise ValueError(f"features must be (N, {len(self.mean) or 'D'}), got {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("features hold a NaN or an infinity: look at the images they come from")
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        digest = hashlib.sha256(self.data.encode() + np.ascontiguousarray(rows).tobytes()).hexdigest()
        self._join(len(rows), mean, centred.T @ centred, digest)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows.  Raises: DataError where the identities differ."""
        check_same(self.identity, other.identity)
        both = Moments(self.identity, self.count, self.mean.copy(), self.scatter.copy(), self.data)
        if other.count:
            digest = hashlib.sha256(f"{self.data}+{other.data}".encode()).hexdigest() if self.count else other.data
            both._join(other.count, other.mean, other.scatter, digest)
        return both

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), divided by count - 1.  Raises: ValueError below two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count}")
        return self.scatter / (self.count - 1)

    def frechet_distance(self, other: Moments) -> float:
        """Frechet distance of the two Gaussians.  Raises: DataError where the identities differ."""
        check_same(self.identity, other.identity)
        return gaussian_frechet_distance(self.mean, self.covariance, other.mean, other.covariance)

    def save(self, folder: Path) -> None:
        """Put `folder` in place, whole or not at all: arrays as safetensors, what they are as JSON."""
        from safetensors.numpy import save

        facts = {"identity": self.identity, "count": self.count, "data": self.data, "dimension": len(self.mean)}
        with atomic_folder(folder) as fresh:
            atomic_write_bytes(fresh / _ARRAYS, save({"mean": self.mean, "scatter": self.scatter}))
            write_json(fresh / _FACTS, facts)

    @classmethod
    def load(cls, folder: Path) -> Moments:
        """Reverse of `save`.  Raises: DataError where a file is missing, damaged or does not fit the other."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            facts = read_json(folder / _FACTS)
            arrays = load((folder / _ARRAYS).read_bytes())
            mean, scatter = arrays["mean"], arrays["scatter"]
            if mean.shape != (facts["dimension"],) or scatter.shape != (facts["dimension"],) * 2:
                raise ValueError(f"shapes {mean.shape} and {scatter.shape} are not of dimension {facts['dimension']}")
            return cls(facts["identity"], int(facts["count"]), mean, scatter, facts["data"])
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise DataError(f"{folder} holds no saved statistics ({error}): make them again") from None

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray, digest: str) -> None:
        """Chan, Golub & LeVeque 1983, Eqs. 2.1a and 2.1b, for vectors: exact however far the mean is from zero."""
        self.data = digest
        if not self.count:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total, gap = self.count + count, mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(gap, gap) * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total


def check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raises: DataError naming what differs, unless two identities are equal."""
    missing = object()
    differing = sorted(k for k in {*one, *other} if one.get(k, missing) != other.get(k, missing))
    if differing:
        told = "; ".join(f"{key}: {one.get(key)!r:.60} and {other.get(key)!r:.60}" for key in differing)
        raise DataError(f"these features do not compare ({told}): extract both with one extractor and preprocessing")
