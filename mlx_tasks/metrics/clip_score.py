"""CLIPScore with published CLIP weights: does an image show what its caption says?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_tasks.metrics.bootstrap import bootstrap_mean
from mlx_tasks.metrics.estimate import Estimate, share


def clip_scores(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """(N,) 100 max(cos, 0) of each pair of embeddings (N, D).

    Raises: ValueError for unequal shapes.
    Source: Hessel et al. 2021, Eq. 1, with the weight of 100 that torchmetrics and later tables use instead of 2.5.
    """
    if images.shape != captions.shape or images.ndim != 2:
        raise ValueError(f"one caption's embedding an image is needed, got {images.shape} and {captions.shape}")
    return 100 * np.maximum((_unit(images) * _unit(captions)).sum(axis=1), 0.0)


def clip_score(
    images: np.ndarray, captions: np.ndarray, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of `clip_scores` with a bootstrap interval over the pairs."""
    return bootstrap_mean(clip_scores(images, captions), resamples, confidence, seed)


def r_precision(images: np.ndarray, captions: np.ndarray, groups: Sequence[int], confidence: float = 0.95) -> Estimate:
    """Share of images whose most similar caption, among one of each group, is of their own group.

    Args:
        images: (N, D) embeddings; captions: (N, D), that of each image; groups: (N,) what makes captions equal.

    Raises: ValueError for fewer than two groups.  Source: Park et al. 2021 (CLIP-R-precision), over all groups.
    """
    kinds, first, own = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    if len(kinds) < 2:
        raise ValueError("captions can only be told apart where there are two different ones")
    chosen = (_unit(images) @ _unit(captions[first]).T).argmax(axis=1)
    return share(chosen == own, confidence)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
