"""What kind of images a dataset holds: one Gaussian a domain over image statistics, with "unknown" as an answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.domains.features import NAMES, features
from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json

UNKNOWN = "unknown"
TABLE = Path(__file__).resolve().parents[2] / "include" / "domains.json"
"""Written by benchmarks/domain_detector.py, which also measures it."""

MAX_IMAGES = 512
"""Images looked at, evenly chosen over the set."""


EVIDENCE = 4
"""Most images' worth of evidence that a set counts for: images of one set are alike, so each says less than one alone
would. Held-out sets of known sources are all named rightly at any value, so this one is chosen, and cautious."""


@dataclass(frozen=True)
class DomainGuess:
    """An answer about a set of images.

    Attributes:
        name: a domain's name, or "unknown".
        probability: the calibrated chance that the set is of that domain; for "unknown" the share of strange images, or
            what the likeliest domain's chance leaves.
        chances: the chance of each domain, if it is one of them.
        strange: share of the images that are typical of no domain.
    """

    name: str
    probability: float
    chances: dict[str, float]
    strange: float


@dataclass(frozen=True)
class Detector:
    """A Gaussian for each of K domains over D statistics.

    Attributes:
        names: (K,) domains.
        means, precisions: (K, D) and (K, D, D) of standardised statistics.
        centre, scale: (D,) what standardises them.
        temperature: what the log likelihoods are divided by, so that a stated chance comes true that often.
        limits: (K,) squared Mahalanobis distance beyond which an image is strange to its domain.
    """

    names: tuple[str, ...]
    means: np.ndarray
    precisions: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    temperature: float
    limits: np.ndarray

    def posteriors(self, statistics: np.ndarray) -> np.ndarray:
        """(N, K) chances of each domain for each image.  statistics: (N, D).

        p(k | z) = softmax_k(log N(z; mean_k, precision_k) / temperature)
        """
        log_determinants = np.linalg.slogdet(self.precisions)[1]
        return _softmax((log_determinants - self.distances(statistics)) / 2 / self.temperature)

    def strange(self, statistics: np.ndarray) -> np.ndarray:
        """(N,) whether an image lies beyond the limit of its likeliest domain."""
        rows, best = np.arange(len(statistics)), self.posteriors(statistics).argmax(axis=1)
        return self.distances(statistics)[rows, best] > self.limits[best]

    def set_chances(self, posteriors: np.ndarray) -> np.ndarray:
        """(K,) chances for a set of images: softmax_k(min(N, EVIDENCE) * mean over the images of log p(k | z)).

        One image cannot veto: log p is kept above log(0.001).
        """
        return _softmax(min(len(posteriors), EVIDENCE) * np.log(np.maximum(posteriors, 1e-3)).mean(axis=0))

    def distances(self, statistics: np.ndarray) -> np.ndarray:
        """(N, K) squared Mahalanobis distances."""
        offsets = ((statistics - self.centre) / self.scale)[:, None, :] - self.means
        return np.einsum("nkd,kde,nke->nk", offsets, self.precisions, offsets)

    def guess(self, images: np.ndarray) -> DomainGuess:
        """The domain of a set of uint8 images (N, H, W, C).

        Unknown where over half of the images are strange, or no domain has a chance of a half.

        Raises: ValueError for no images, or images of another kind.
        """
        if not len(images):
            raise ValueError("a domain is guessed from at least one image, got none")
        chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).round().astype(int)
        statistics = features(images[chosen])
        strange = float(self.strange(statistics).mean())
        values = self.set_chances(self.posteriors(statistics))
        chances = {name: float(value) for name, value in zip(self.names, values, strict=True)}
        best = max(self.names, key=lambda name: chances[name])
        if strange > 0.5:
            return DomainGuess(UNKNOWN, strange, chances, strange)
        if chances[best] < 0.5:
            return DomainGuess(UNKNOWN, 1.0 - chances[best], chances, strange)
        return DomainGuess(best, chances[best], chances, strange)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, to six digits."""
        return {
            "statistics": list(NAMES),
            "centre": _digits(self.centre),
            "scale": _digits(self.scale),
            "temperature": self.temperature,
            "domains": {
                name: {"limit": float(limit), "mean": _digits(mean), "precision": _digits(precision)}
                for name, limit, mean, precision in zip(
                    self.names, self.limits, self.means, self.precisions, strict=True
                )
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Detector:
        """The detector of `to_dict`'s values.  Raises: DataError where they are of other statistics or incomplete."""
        if values.get("statistics") != list(NAMES):
            raise DataError(
                "the domain table is of other statistics than this code's: run benchmarks/domain_detector.py"
            )
        try:
            domains = values["domains"]
            return cls(
                tuple(domains),
                np.array([domain["mean"] for domain in domains.values()]),
                np.array([domain["precision"] for domain in domains.values()]),
                np.array(values["centre"]),
                np.array(values["scale"]),
                float(values["temperature"]),
                np.array([domain["limit"] for domain in domains.values()]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the domain table is incomplete ({error!r}): run benchmarks/domain_detector.py") from None


def fit_detector(fit: Mapping[str, np.ndarray], calibrate: Mapping[str, np.ndarray], ridge: float = 0.05) -> Detector:
    """A detector from statistics (N, D) of each domain.

    Means and covariances come from `fit`, with `ridge` of the pooled variances mixed in. On `calibrate` the temperature
    is the one with the least log loss, and a domain's limit the 99th percentile of its own images' distances.
    """
    names, pooled = tuple(fit), np.concatenate(list(fit.values()))
    centre, scale = pooled.mean(axis=0), pooled.std(axis=0) + 1e-9
    standard = {name: (statistics - centre) / scale for name, statistics in fit.items()}
    means = np.array([standard[name].mean(axis=0) for name in names])
    size = len(centre)
    covariances = [(1 - ridge) * np.cov(standard[name].T) + ridge * np.eye(size) for name in names]
    precisions = np.array([np.linalg.inv(covariance) for covariance in covariances])
    raw = Detector(names, means, precisions, centre, scale, 1.0, np.full(len(names), np.inf))
    limits = [np.quantile(raw.distances(calibrate[name])[:, index], 0.99) for index, name in enumerate(names)]
    raw = replace(raw, limits=np.array(limits))

    def image_loss(temperature: float) -> float:
        detector = replace(raw, temperature=temperature)
        return _log_loss(detector.posteriors(calibrate[name])[:, index] for index, name in enumerate(names))

    return replace(raw, temperature=_least(image_loss, 0.1, 100.0))


def detect_domain(images: np.ndarray, table: Path = TABLE) -> DomainGuess:
    """What kind of images these are.  images: uint8 (N, H, W, 1 or 3), N >= 1.

    Raises: ValueError for other images; DataError for a table that cannot be read.
    """
    return load_detector(table).guess(images)


@functools.lru_cache(maxsize=4)
def load_detector(table: Path = TABLE) -> Detector:
    """The stored detector.  Raises: DataError if there is none or it is of other code."""
    return Detector.from_dict(read_table(table)["detector"])


def read_table(table: Path = TABLE) -> dict[str, Any]:
    """The stored table.  Raises: DataError if it cannot be read."""
    try:
        return read_json(table)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the domain table {table}: {error}; run benchmarks/domain_detector.py") from None


def _softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _log_loss(chances: Iterable[Any]) -> float:
    """Mean of -log of the chances given to what was true."""
    return -float(np.log(np.concatenate([np.atleast_1d(c) for c in chances]) + 1e-12).mean())


def _least(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a loss of one positive number is least, searched in its logarithm."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda x: loss(float(np.exp(x))), bounds=(np.log(low), np.log(high)), method="bounded")
    return float(np.exp(found.x))


def _digits(values: np.ndarray) -> list[Any]:
    return [float(f"{v:.6g}") if np.ndim(v) == 0 else _digits(v) for v in values]
