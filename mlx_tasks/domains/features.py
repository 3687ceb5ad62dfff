"""What a detector sees of an image: twenty-four statistics of colour, brightness, gradients and frequencies."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from PIL import Image

SIDE = 16
"""Every image is brought to this side first, so that a statistic means the same at any resolution (pixels)."""

NAMES = (
    "saturation",
    "saturation_spread",
    "opponent_red_green",
    "opponent_yellow_blue",
    "contrast",
    "extremes",
    "entropy",
    "background_share",
    "border_spread",
    "border_to_centre",
    "middle_tones",
    "gradient",
    "gradient_sparsity",
    "gradient_peak",
    "flat_share",
    "orientation",
    "laplacian",
    "power_1",
    "power_2",
    "power_3",
    "power_4",
    "mirror_horizontal",
    "colour_count",
    "palette_share",
)

_EPSILON = 1e-3


def features(images: np.ndarray) -> np.ndarray:
    """(N, 24) float64 statistics of uint8 images (N, H, W, C), C 1 or 3; negatives of an image have the same.

    Raises: ValueError for another shape or dtype.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 (N, H, W, 1 or 3), got {images.dtype} {images.shape}")
    if not len(images):
        return np.zeros((0, len(NAMES)))
    colour = _to_side(images)
    grey = colour @ np.array([0.299, 0.587, 0.114])
    columns = [*_colour(colour), *_tones(grey), *_gradients(grey), *_powers(grey), *_layout(grey, colour)]
    return np.stack(columns, axis=1)


def _to_side(images: np.ndarray) -> np.ndarray:
    """(N, SIDE, SIDE, 3) float64 in [0, 1], resized with antialiasing."""
    pixels = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    if images.shape[1:3] != (SIDE, SIDE):
        size = (SIDE, SIDE)
        pixels = np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pixels])
    return pixels / 255.0


def _colour(colour: np.ndarray) -> list[np.ndarray]:
    """Saturation's mean and spread, and the spreads of the two opponent axes (Hasler & Suesstrunk 2003)."""
    saturation = np.ptp(colour, axis=-1)
    red, green, blue = np.moveaxis(colour, -1, 0)
    spreads = [_std(saturation), _std(red - green), _std((red + green) / 2 - blue)]
    return [_log(saturation.mean((1, 2))), *map(_log, spreads)]


def _tones(grey: np.ndarray) -> list[np.ndarray]:
    """How brightness is spread: contrast, share of black and white, entropy, and how plain the background is."""
    low, high = grey.min((1, 2), keepdims=True), grey.max((1, 2), keepdims=True)
    scaled = (grey - low) / np.maximum(high - low, _EPSILON)
    flat = scaled.reshape(len(grey), -1)
    shares = np.stack([((flat >= i / 12) & (flat < (i + 1) / 12 + (i == 11))).mean(1) for i in range(12)], axis=1)
    entropy = -(shares * np.log(shares + 1e-9)).sum(1)
    border = np.concatenate([scaled[:, 0], scaled[:, -1], scaled[:, :, 0], scaled[:, :, -1]], axis=1)
    background = np.median(border, axis=1)[:, None]
    return [
        _log(_std(grey)),
        shares[:, [0, -1]].sum(1),
        entropy,
        (np.abs(flat - background) < 0.08).mean(1),
        _log(border.std(1)),
        _log(border.std(1)) - _log(_std(scaled[:, 4:-4, 4:-4])),
        shares[:, 3:9].sum(1),
    ]


def _gradients(grey: np.ndarray) -> list[np.ndarray]:
    """Size, sparsity and preferred direction of the brightness gradient, and the share of it that turns."""
    across, down = grey[:, 1:, 1:] - grey[:, 1:, :-1], grey[:, 1:, 1:] - grey[:, :-1, 1:]
    squared = across**2 + down**2
    rms = np.sqrt(squared.mean((1, 2)))
    doubled = (across + 1j * down) ** 2
    curved = 4 * grey[:, 1:-1, 1:-1] - grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1] - grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    return [
        _log(rms),
        np.sqrt(squared).mean((1, 2)) / (rms + _EPSILON),
        _log(np.sqrt(squared).max((1, 2))) - _log(rms),
        (squared < 0.015**2).mean((1, 2)),
        np.abs(doubled.sum((1, 2))) / (squared.sum((1, 2)) + _EPSILON),
        _log(_std(curved)) - _log(_std(grey)),
    ]


def _powers(grey: np.ndarray) -> list[np.ndarray]:
    """Log share of the power in four octaves of spatial frequency, under a Hann window."""
    window = np.outer(np.hanning(SIDE), np.hanning(SIDE))
    power = np.abs(np.fft.fft2((grey - grey.mean((1, 2), keepdims=True)) * window)) ** 2
    axis = np.abs(np.fft.fftfreq(SIDE) * SIDE)
    radius = np.hypot(axis[:, None], axis)
    total = power.sum((1, 2)) + 1e-6
    edges = (0.5, 1.5, 3.0, 5.0, 12.0)
    return [
        np.log10(power[:, (radius >= low) & (radius < high)].sum(1) / total + 1e-4) for low, high in pairwise(edges)
    ]


def _layout(grey: np.ndarray, colour: np.ndarray) -> list[np.ndarray]:
    """Likeness to the mirror image, how many distinct colours there are, and the share of the four commonest."""
    centred = grey - grey.mean((1, 2), keepdims=True)
    mirror = (centred * centred[:, :, ::-1]).mean((1, 2)) / (centred.var((1, 2)) + 1e-5)
    coarse = np.floor(colour * 7.999).astype(np.int64) @ np.array([64, 8, 1])
    tallies = [np.sort(np.unique(image, return_counts=True)[1])[::-1] for image in coarse]
    counts, four = np.array([len(t) for t in tallies]), np.array([t[:4].sum() for t in tallies])
    return [mirror, np.log(counts), four / SIDE**2]


def _std(values: np.ndarray) -> np.ndarray:
    return values.std((1, 2))


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(values + _EPSILON)
