"""The Frechet distance between two sets of features, each taken as a Gaussian."""

from __future__ import annotations

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Wasserstein-2 distance of the Gaussians fitted to two feature sets.

    d = |mu_a - mu_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a^(1/2) C_b C_a^(1/2))^(1/2))

    Estimates are biased upward by about 1/N, so compare values of equal counts only.

    Args:
        a: (N, D).
        b: (M, D).

    Raises: ValueError unless both are finite, of one width, and hold at least two rows.
    Source: Heusel et al. 2017, Eq. 6; the symmetric form needs no square root of a non-symmetric matrix, so it stays
    exact where covariances are singular.
    """
    _check(a, b)
    return gaussian_frechet_distance(a.mean(axis=0), _covariance(a), b.mean(axis=0), _covariance(b))


def gaussian_frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """The same distance from means (D,) and covariances (D, D).  Returns: at least 0."""
    values, vectors = np.linalg.eigh(covariance_a)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    # The product's eigenvalues are the squares of the singular values of C_a^(1/2) C_b^(1/2), which keep twice the
    # digits near zero: squaring and rooting 1e-18 would leave 1e-9 of noise for each empty direction.
    values, vectors = np.linalg.eigh(covariance_b)
    root_b = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    overlap = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    mean_part = float(((mean_a - mean_b) ** 2).sum())
    return max(0.0, mean_part + float(np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap))


def _covariance(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=0)
    return centred.T @ centred / (len(x) - 1)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be (N >= 2, D) with one D, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features hold a NaN or an infinity: look at the images they come from")
