"""What earlier runs found best, by kind of image: a versioned file from which a new run takes its start.

Every run leaves steps that were searched and compared for its own images. The book keeps, for each run and number of
evaluations, the best grid among those that need nothing but noise levels, beside the mean statistics of its images.
A new dataset starts from the entry whose images are nearest to its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.domains.detector import Detector, load_detector
from mlx_tasks.domains.features import NAMES, features
from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.samplers.grids import Grid, rounded_grid

BOOK = Path(__file__).resolve().parents[2] / "include" / "sampler_settings.json"
MAX_IMAGES = 512
"""Images that statistics are taken of, evenly chosen over the set."""


@dataclass(frozen=True)
class Entry:
    """One run's best grid for one number of evaluations.

    Attributes:
        domain: what the detector called its images.
        statistics: (24,) means of `domains.features` over them.
        budget: network evaluations, one a level.
        sigmas: that many falling noise levels.
        error, uniform_error: distance to the many-step result on fresh noises, and that of the evenly spaced grid.
        bundle: digest of the model it was found for; resolution: side of its images (pixels).
    Raises: DataError naming the rule that is broken.
    """

    domain: str
    statistics: tuple[float, ...]
    budget: int
    sigmas: tuple[float, ...]
    error: float
    uniform_error: float
    bundle: str
    resolution: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "statistics", tuple(float(v) for v in self.statistics))
        object.__setattr__(self, "sigmas", tuple(float(s) for s in self.sigmas))
        if len(self.statistics) != len(NAMES):
            raise DataError(f"an entry holds {len(NAMES)} statistics, got {len(self.statistics)}")
        falling = all(b < a for a, b in pairwise(self.sigmas)) and bool(self.sigmas) and self.sigmas[-1] > 0
        if len(self.sigmas) != self.budget or not falling:
            raise DataError(f"an entry of {self.budget} evaluations holds as many falling sigmas, got {self.sigmas}")


@dataclass(frozen=True)
class SettingsBook:
    """All entries, and which version of the book they are.

    Attributes:
        version: 0 for an empty book, one more for every change.
        previous: digest of the version before, or None.
        entries: newest last.
    """

    version: int = 0
    previous: str | None = None
    entries: tuple[Entry, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over version, previous and entries."""
        return hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode()).hexdigest()

    def with_entries(self, new: Sequence[Entry]) -> SettingsBook:
        """The next version, entries of the same model and budget replaced; the book itself where nothing is new."""
        named = {(entry.bundle, entry.budget) for entry in new}
        kept = [entry for entry in self.entries if (entry.bundle, entry.budget) not in named]
        if not new or set(new) <= set(self.entries):
            return self
        return SettingsBook(self.version + 1, self.digest if self.version else None, (*kept, *new))

    def nearest(self, statistics: Sequence[float], detector: Detector | None = None) -> list[tuple[float, Entry]]:
        """(distance, entry), the nearest first: Euclidean over statistics in units of their spread over all domains."""
        detector = detector or load_detector()
        ours = np.asarray(statistics, dtype=np.float64)
        found = []
        for entry in self.entries:
            gap = (ours - np.asarray(entry.statistics)) / detector.scale
            found.append((float(np.sqrt(np.mean(gap**2))), entry))
        return sorted(found, key=lambda pair: pair[0])

    def grid_for(self, statistics: Sequence[float], budget: int, schedule: NoiseSchedule) -> Grid | None:
        """The nearest images' grid for a number of evaluations, or None from an empty book.

        Of entries at equal distance the one whose budget is nearest, then the one that gained most over even steps;
        with another budget its levels are interpolated in log sigma over their places, ends kept.
        """
        found = self.nearest(statistics)
        if not found:
            return None

        def order(pair: tuple[float, Entry]) -> tuple[float, int, float]:
            distance, entry = pair
            return round(distance, 9), abs(entry.budget - budget), entry.error / max(entry.uniform_error, 1e-12)

        entry = min(found, key=order)[1]
        places = np.linspace(0.0, 1.0, budget) if budget > 1 else np.array([0.0])
        logs = np.interp(places, np.linspace(0.0, 1.0, entry.budget), np.log(entry.sigmas))
        return rounded_grid(schedule, schedule.t_from_sigma(np.exp(logs)))

    def save(self, path: Path = BOOK) -> None:
        """Write it as JSON, with its digest."""
        write_json(path, {**self._plain(), "digest": self.digest})

    @classmethod
    def load(cls, path: Path = BOOK) -> SettingsBook:
        """What `save` wrote; an empty book where there is no file.

        Raises: DataError for a file that is none, or whose digest is another: it was edited by hand or cut.
        """
        if not path.is_file():
            return cls()
        try:
            told = read_json(path)
            names = {field.name for field in fields(Entry)}
            entries = tuple(Entry(**{name: row[name] for name in names}) for row in told["entries"])
            book = cls(int(told["version"]), told["previous"], entries)
            kept = told["digest"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is no book of sampler settings ({error!r})") from None
        if kept != book.digest:
            raise DataError(f"{path} holds other entries than its digest says: take it back from version control")
        return book

    def _plain(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "previous": self.previous,
            "entries": [asdict(entry) | {"statistics": list(entry.statistics), "sigmas": list(entry.sigmas)}
                        for entry in self.entries],
        }  # fmt: skip


def mean_statistics(images: np.ndarray) -> tuple[float, ...]:
    """(24,) means of `features` over images uint8 (N, H, W, C), at most MAX_IMAGES of them."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).round().astype(int)
    return tuple(float(v) for v in features(images[chosen]).mean(axis=0))


def entries_of_run(workspace: Path) -> list[Entry]:
    """What a finished run's `tune` stage found, for each of its budgets.

    Raises: DataError for a folder without a dataset, a searched student and schedules.
    """
    from mlx_tasks.models.bundle import read_bundle

    try:
        domain = read_json(workspace / "work" / "dataset" / "summary.json")["domain"]
        rows = read_json(workspace / "work" / "schedules" / "schedules.json")["rows"]
        statistics = domain["statistics"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{workspace} holds no finished run of the tune stage ({error!r})") from None
    bundle, entries = read_bundle(workspace / "work" / "searched"), []
    for budget in sorted({int(row["budget"]) for row in rows}):
        of = [row for row in rows if row["budget"] == budget and row["learned"] is None]
        best = min(of, key=lambda row: row["error"])
        uniform = next(row["error"] for row in of if row["grid"] == "uniform")
        levels = tuple(float(bundle.schedule.sigmas[t]) for t in best["timesteps"])
        side = bundle.sampler.resolution
        entries.append(
            Entry(domain["name"], statistics, len(levels), levels, best["error"], uniform, bundle.digest, side)
        )
    return entries
