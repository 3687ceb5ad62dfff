"""Sets of known worth, made from the training images: the marks on the ruler that make a score readable."""

from __future__ import annotations

import numpy as np


def held_out_rows(count: int, samples: int, seed: int) -> np.ndarray:
    """(min(samples, count),) rising rows of a split of `count` images: those that everything is scored against."""
    return np.sort(np.random.Generator(np.random.PCG64([seed, 20])).permutation(count)[:samples])


def matching_real(images: np.ndarray, labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Real images with the wanted labels, each used once while there are enough: the best a sampler can score.

    Args:
        images: (N, H, W, C).
        labels: (N,) their labels.
        wanted: (M,) labels to match.
        seed: of the choice.

    Raises: ValueError where a wanted label has no image.
    """
    return images[_matching_rows(labels, wanted, seed)]


def class_missing(images: np.ndarray, labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Real images, but the most frequent wanted class never comes: a sampler that dropped a mode.

    Its places go to the other classes in their proportions.  Raises: ValueError for fewer than two classes.
    """
    kinds, counts = np.unique(wanted, return_counts=True)
    if len(kinds) < 2:
        raise ValueError("a class can only be missing where there are two")
    gone = kinds[counts.argmax()]
    generator = np.random.Generator(np.random.PCG64([seed, 11]))
    others = wanted[wanted != gone]
    replaced = np.where(wanted == gone, generator.choice(others, len(wanted)), wanted)
    return images[_matching_rows(labels, replaced, seed)]


def class_gaussians(images: np.ndarray, labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Draws from a Gaussian fitted to each class's pixels: right means and covariances, no shapes.

    x = mean + Z^T (X - mean) / sqrt(n - 1),  Z ~ N(0, 1)^n, which has the class's covariance without forming it.

    Args: as `matching_real`.  Returns: (M, H, W, C) uint8.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 12]))
    drawn = np.empty((len(wanted), *images.shape[1:]), np.uint8)
    for kind in np.unique(wanted):
        members = images[labels == kind].reshape((labels == kind).sum(), -1).astype(np.float64)
        if not len(members):
            raise ValueError(f"label {kind} is wanted and has no image")
        mean = members.mean(axis=0)
        places = np.flatnonzero(wanted == kind)
        weights = generator.standard_normal((len(places), len(members))) / np.sqrt(max(1, len(members) - 1))
        pixels = mean + weights @ (members - mean)
        drawn[places] = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8).reshape(-1, *images.shape[1:])
    return drawn


def blurred(images: np.ndarray) -> np.ndarray:
    """A Gaussian blur of 1/16 of the side: right shapes, no edges.  images: (N, H, W, C) uint8."""
    from scipy.ndimage import gaussian_filter

    sigma = images.shape[1] / 16
    return np.rint(gaussian_filter(images.astype(np.float64), (0, sigma, sigma, 0), mode="nearest")).astype(np.uint8)


def noisy(images: np.ndarray, seed: int, share: float = 0.1) -> np.ndarray:
    """Real images with Gaussian grain of `share` of the range, rounded: right shapes, wrong surface."""
    generator = np.random.Generator(np.random.PCG64([seed, 14]))
    grain = generator.normal(0.0, 255 * share, images.shape)
    return np.rint(np.clip(images + grain, 0, 255)).astype(np.uint8)


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform noise, uint8: the worst a sampler can score."""
    return np.random.Generator(np.random.PCG64([seed, 13])).integers(0, 256, shape, dtype=np.uint8)


def _matching_rows(labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64([seed, 10]))
    rows = np.empty(len(wanted), np.int64)
    for kind in np.unique(wanted):
        members = generator.permutation(np.flatnonzero(labels == kind))
        if not len(members):
            raise ValueError(f"label {kind} is wanted and has no image")
        places = np.flatnonzero(wanted == kind)
        rows[places] = np.resize(members, len(places))
    return rows
