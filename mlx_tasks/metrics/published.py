"""The published metrics of one extractor against fixed held-out images: names that stand on published weights alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.metrics.bootstrap import centred_bootstrap
from mlx_tasks.metrics.clip_score import clip_score
from mlx_tasks.metrics.cmmd import cmmd
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.metrics.extractors.lpips import lpips_diversity
from mlx_tasks.metrics.extractors.registry import EXTRACTORS, make_extractor
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.inception_score import inception_score
from mlx_tasks.metrics.kid import kid

Scores = dict[str, Estimate]


class PublishedScores:
    """What an extractor says of images, against held-out ones whose features are taken once."""

    def __init__(
        self,
        extractor: Any,
        real: np.ndarray,
        captions: list[str] | None,
        labels: np.ndarray | None,
        resamples: int,
        confidence: float,
        seed: int,
    ) -> None:
        """real: (N, H, W, C) uint8; captions: N, for clip_score; labels: (N,) of the images to come, for diversity."""
        self.extractor, self.labels = extractor, labels
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        family = extractor.name.split("_")[0]
        self._score: Callable[[np.ndarray], Scores] = getattr(self, f"_{family}")
        self._real = None if family == "lpips" else np.asarray(extractor(real), np.float64)
        self._captions = None
        if family == "clip" and captions is not None:
            distinct, rows = np.unique(captions, return_inverse=True)
            self._captions = np.asarray(extractor.embed_captions(distinct.tolist()), np.float64)[rows]

    @property
    def identity(self) -> dict[str, Any]:
        """The extractor's."""
        return self.extractor.identity

    def __call__(self, images: np.ndarray) -> Scores:
        """Name -> estimate of images (N, H, W, C) uint8, as many as there are held-out ones."""
        return self._score(images)

    def _inception(self, images: np.ndarray) -> Scores:
        features, logits = self.extractor.features_and_logits(images)
        scores = {"fid": self._frechet(features), "kid": kid(np.asarray(features, np.float64), self._features())}
        if len(logits) >= 20:
            scores["inception_score"] = inception_score(logits, seed=self.seed, confidence=self.confidence)
        return scores

    def _clip(self, images: np.ndarray) -> Scores:
        embedded = np.asarray(self.extractor(images), np.float64)
        scores = {"cmmd": cmmd(embedded, self._features(), self.confidence)}
        if self._captions is not None:
            scores["clip_score"] = clip_score(
                embedded, self._captions, max(200, self.resamples), self.confidence, self.seed
            )
        return scores

    def _dinov2(self, images: np.ndarray) -> Scores:
        return {"fd_dinov2": self._frechet(self.extractor(images))}

    def _lpips(self, images: np.ndarray) -> Scores:
        found = lpips_diversity(self.extractor, images, self.labels, self.seed, confidence=self.confidence)
        return {"lpips_diversity": found}

    def _frechet(self, features: np.ndarray) -> Estimate:
        a, b = in_their_span(np.asarray(features, np.float64), self._features())
        return centred_bootstrap(frechet_distance, a, b, self.resamples, self.confidence, self.seed)

    def _features(self) -> np.ndarray:
        assert self._real is not None
        return self._real


def in_their_span(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of both sets' rows in an orthonormal basis of what they span, where that is smaller than D.

    A few hundred images of 2048 features span a few hundred directions; distances, and covariances up to the rotation,
    stay what they were, and a Frechet distance costs (N + M)^3 instead of D^3.
    """
    if a.shape[1] <= len(a) + len(b):
        return a, b
    centre = a.mean(axis=0)
    basis = np.linalg.qr(np.concatenate([a, b]).T - centre[:, None])[0]
    return (a - centre) @ basis, (b - centre) @ basis


def open_published(
    names: tuple[str, ...],
    folder: str | None,
    real: np.ndarray,
    captions: list[str] | None,
    labels: np.ndarray | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[PublishedScores]:
    """One for each named extractor, weights read now.

    folder: holds a file or a subfolder for each; None for what `find_weights` finds.
    Raises: DataError as the extractors, which say what is missing.
    """
    made = []
    for name in names:
        path = None
        if folder is not None and name in EXTRACTORS:
            inside = Path(folder).expanduser() / name
            path = inside if inside.exists() else Path(folder).expanduser()
        extractor = make_extractor(name, path)
        made.append(PublishedScores(extractor, real, captions, labels, resamples, confidence, seed))
    return made
