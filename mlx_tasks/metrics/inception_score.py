"""Inception Score: images that a classifier is sure of, of many classes."""

from __future__ import annotations

import numpy as np

from mlx_tasks.metrics.estimate import Estimate, normal_quantile


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """exp(E KL(p(y|x) || p(y))): mean over `splits` random parts, the interval from their deviation.

    Args:
        logits: (N, classes) of an ImageNet Inception, 1008 of them with the FID weights.

    Raises: ValueError unless every part has at least two images.
    Source: Salimans et al. 2016, Section 4.
    """
    if splits < 2 or len(logits) < 2 * splits:
        raise ValueError(f"{splits} parts of at least 2 images are needed, got {len(logits)} images: use fewer splits")
    from scipy.special import log_softmax

    order = np.random.Generator(np.random.PCG64([seed, len(logits)])).permutation(len(logits))
    scores = []
    for part in np.array_split(order, splits):
        log_p = log_softmax(np.asarray(logits[part], np.float64), axis=1)
        p = np.exp(log_p)
        marginal = np.log(np.maximum(p.mean(axis=0), 1e-300))
        scores.append(float(np.exp((p * (log_p - marginal)).sum(axis=1).mean())))
    value, half = float(np.mean(scores)), normal_quantile(confidence) * float(np.std(scores, ddof=1) / splits**0.5)
    return Estimate(value, value - half, value + half)
