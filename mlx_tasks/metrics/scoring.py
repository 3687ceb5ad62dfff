"""All scores of one set of images against one set of held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_tasks.metrics.bootstrap import bootstrap_mean, centred_bootstrap
from mlx_tasks.metrics.c2st import two_sample_test
from mlx_tasks.metrics.density_coverage import density_coverage
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.metrics.extractors.self_supervised import SelfSupervisedFeatures
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.image_text import ImageTextModel, image_text_scores
from mlx_tasks.metrics.kid import kid
from mlx_tasks.metrics.memorisation import memorisation
from mlx_tasks.metrics.precision_recall import precision_recall
from mlx_tasks.metrics.published import PublishedScores
from mlx_tasks.metrics.random_conv import RandomConvFeatures


@dataclass(frozen=True)
class Judge:
    """What every candidate is held against.

    Attributes:
        real: (N, H, W, C) uint8 held-out images.
        real_features: (N, D) their features.
        space: the feature space.
        captions: N captions, one for each image wanted; None where images are not drawn to captions.
        image_text: the model behind the image-text score; None where there is none.
        train_features: (T, D) features of the training images, for memorisation; None leaves it out.
        fresh_features: (F, D) features of images that no stage trains on, to hold memorisation against.
        embedded: the built-in learned space; None leaves its scores out.
        embedded_real: (N, E) features of the held-out images there.
        published: scores on published weights, if any were asked for.
        resamples: of each bootstrap.
        confidence: level of each interval.
        seed: of folds and resamples.
    """

    real: np.ndarray
    real_features: np.ndarray
    space: RandomConvFeatures
    captions: list[str] | None
    image_text: ImageTextModel | None
    resamples: int
    confidence: float
    seed: int
    train_features: np.ndarray | None = None
    fresh_features: np.ndarray | None = None
    embedded: SelfSupervisedFeatures | None = None
    embedded_real: np.ndarray | None = None
    published: tuple[PublishedScores, ...] = ()

    def scores(self, images: np.ndarray) -> dict[str, Estimate]:
        """Name -> estimate for images (N, H, W, C) uint8, as many as there are held-out ones.

        frechet_distance, kernel_distance, precision, recall, density, coverage, c2st_accuracy, c2st_p_value; where they
        can be had image_text_score, memorisation, frechet_distance_embedded, kernel_distance_embedded, and the
        published ones.  Raises: ValueError for other counts: biased scores compare at equal counts only.
        """
        from threadpoolctl import threadpool_limits

        if images.shape != self.real.shape or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 {self.real.shape}, got {images.dtype} {images.shape}")
        features = self.space(images)
        with threadpool_limits(1, user_api="blas"):  # 64 x 64 matrices: threads cost more than they bring
            real, level = self.real_features, self.confidence
            precision, recall = precision_recall(features, real, confidence=level)
            density, coverage = density_coverage(features, real, confidence=level)
            told = two_sample_test(images, self.real, features, real, seed=self.seed, confidence=level)
            scores = {
                "frechet_distance": self._frechet(features, real),
                "kernel_distance": kid(features, real, level),
                "precision": precision,
                "recall": recall,
                "density": density,
                "coverage": coverage,
                "c2st_accuracy": told.accuracy,
                "c2st_p_value": Estimate(told.p_value),
            }
            if self.train_features is not None and self.fresh_features is not None:
                found = memorisation(features, self.train_features, self.fresh_features, level)
                scores["memorisation"] = found.suspicious
            if self.embedded is not None and self.embedded_real is not None:
                embedded = self.embedded(images)
                scores["frechet_distance_embedded"] = self._frechet(embedded, self.embedded_real)
                scores["kernel_distance_embedded"] = kid(embedded, self.embedded_real, level)
        for one in self.published:
            scores |= one(images)
        if self.image_text is not None and self.captions is not None:
            each = image_text_scores(self.image_text, images.astype(np.float32) / 127.5 - 1, self.captions)
            scores["image_text_score"] = bootstrap_mean(each, max(self.resamples, 200), self.confidence, self.seed)
        return scores

    def per_class(self, images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """{class: {kernel_distance, count}} of classes with 3 images or more; unbiased, so small counts compare.

        labels: (N,) of the held-out images, which those of `images` match.
        """
        features, found = self.space(images), {}
        for kind in np.unique(labels):
            rows = labels == kind
            if rows.sum() >= 3:
                distance = kid(features[rows], self.real_features[rows], self.confidence)
                found[names[kind]] = {"kernel_distance": distance.as_dict(), "count": int(rows.sum())}
        return found

    def _frechet(self, features: np.ndarray, real: np.ndarray) -> Estimate:
        return centred_bootstrap(frechet_distance, features, real, self.resamples, self.confidence, self.seed)
