"""All scores of one set of images against one set of held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_tasks.metrics.bootstrap import bootstrap_mean, centred_bootstrap
from mlx_tasks.metrics.c2st import two_sample_test
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.image_text import ImageTextModel, clip_scores
from mlx_tasks.metrics.kid import kid
from mlx_tasks.metrics.precision_recall import precision_recall
from mlx_tasks.metrics.random_conv import RandomConvFeatures


@dataclass(frozen=True)
class Judge:
    """What every candidate is held against.

    Attributes:
        real: (N, H, W, C) uint8 held-out images.
        real_features: (N, D) their features.
        space: the feature space.
        captions: N captions, one for each image wanted; None where images are not drawn to captions.
        image_text: the model behind the CLIP score; None where there is none.
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

    def scores(self, images: np.ndarray) -> dict[str, Estimate]:
        """Name -> estimate for images (N, H, W, C) uint8, as many as there are held-out ones.

        frechet_distance, kid, precision, recall, c2st_accuracy, c2st_p_value, and clip_score where it can be had.
        Raises: ValueError for other counts: biased scores compare at equal counts only.
        """
        from threadpoolctl import threadpool_limits

        if images.shape != self.real.shape or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 {self.real.shape}, got {images.dtype} {images.shape}")
        features = self.space(images)
        with threadpool_limits(1, user_api="blas"):  # 64 x 64 matrices: threads cost more than they bring
            precision, recall = precision_recall(features, self.real_features, confidence=self.confidence)
            told = two_sample_test(
                images, self.real, features, self.real_features, seed=self.seed, confidence=self.confidence
            )
            scores = {
                "frechet_distance": centred_bootstrap(
                    frechet_distance, features, self.real_features, self.resamples, self.confidence, self.seed
                ),
                "kid": kid(features, self.real_features, self.confidence),
                "precision": precision,
                "recall": recall,
                "c2st_accuracy": told.accuracy,
                "c2st_p_value": Estimate(told.p_value),
            }
        if self.image_text is not None and self.captions is not None:
            each = clip_scores(self.image_text, images.astype(np.float32) / 127.5 - 1, self.captions)
            scores["clip_score"] = bootstrap_mean(each, max(self.resamples, 200), self.confidence, self.seed)
        return scores
