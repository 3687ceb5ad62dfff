"""Classifier two-sample test: can a simple classifier tell generated images from real ones?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_tasks.metrics.estimate import Estimate, share

FOLDS = 5
PIXEL_SIDE = 16
"""Larger images are averaged down to about this side for the pixel part of the test."""


@dataclass(frozen=True)
class TwoSampleTest:
    """What the test found.

    Attributes:
        accuracy: share of held-out images told right; 0.5 is a coin, 1.0 is certainty.
        p_value: chance of such an accuracy or a higher one if both sets came from one source.
    """

    accuracy: Estimate
    p_value: float


def two_sample_test(
    generated: np.ndarray,
    real: np.ndarray,
    generated_features: np.ndarray,
    real_features: np.ndarray,
    seed: int,
    confidence: float = 0.95,
) -> TwoSampleTest:
    """Cross-validated accuracy of a logistic regression on features and pixels, and its one-sided p-value.

    Images must be 8-bit as the data is: a float image gives itself away by its rounding alone.

    Args:
        generated: (N, H, W, C) uint8.
        real: (N, H, W, C) uint8, as many.
        generated_features: (N, D).
        real_features: (N, D).
        seed: of the folds.
        confidence: level of the interval.

    Returns: the accuracy with Wilson's interval, and the binomial tail of the right answers. Folds share training
        images, so both are slightly off as exact statements; tests/test_metrics_c2st.py measures the false-alarm rate.
    Raises: ValueError for images that are not uint8, or for unequal counts or fewer than 10 a side.
    Source: Lopez-Paz & Oquab 2017, section 3; cross-validation instead of one split, to use every image once.
    """
    from scipy.stats import binom
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if generated.dtype != np.uint8 or real.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {generated.dtype} and {real.dtype}: use data.loader.to_uint8")
    if generated.shape != real.shape or len(real) < 10:
        raise ValueError(f"both sets need one shape and at least 10 images, got {generated.shape} and {real.shape}")
    x = np.concatenate(
        [
            np.concatenate([generated_features, _small(generated)], axis=1),
            np.concatenate([real_features, _small(real)], axis=1),
        ]
    )
    y = np.repeat([0, 1], [len(generated), len(real)])
    right = np.zeros(len(y), bool)
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        right[test] = classifier.fit(x[train], y[train]).predict(x[test]) == y[test]
    return TwoSampleTest(share(right, confidence), float(binom.sf(right.sum() - 1, len(right), 0.5)))


def _small(images: np.ndarray) -> np.ndarray:
    """(N, pixels) in [0, 1], averaged over square blocks where the side is over PIXEL_SIDE."""
    n, height, width, c = images.shape
    block = max(1, min(height, width) // PIXEL_SIDE)
    cut = images[:, : height // block * block, : width // block * block].astype(np.float64) / 255
    return cut.reshape(n, height // block, block, width // block, block, c).mean(axis=(2, 4)).reshape(n, -1)
