"""A few numbers of a picture that people have words for."""

from __future__ import annotations

import numpy as np

SCALARS = ("brightness", "contrast", "colourfulness", "sharpness")
IMAGE_TEXT = "image_text_score"
"""How well an image agrees with the caption of the class it was asked for (`metrics.image_text`)."""


def picture_numbers(images: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (N,)} of images (N, H, W, C) uint8.

    brightness: mean grey, 0 to 1; contrast: its standard deviation; colourfulness: Hasler & Suesstrunk 2003, Eq. 10,
    on 0 to 1, zero for grey images; sharpness: standard deviation of the grey image's Laplacian.
    """
    pixels = images.astype(np.float64) / 255.0
    grey = pixels.mean(axis=-1)
    across = grey[:, 1:-1, 1:-1] * 4 - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]
    colour = np.zeros(len(images))
    if images.shape[-1] == 3:
        red_green = pixels[..., 0] - pixels[..., 1]
        yellow_blue = (pixels[..., 0] + pixels[..., 1]) / 2 - pixels[..., 2]
        spread = np.hypot(red_green.std(axis=(1, 2)), yellow_blue.std(axis=(1, 2)))
        colour = spread + 0.3 * np.hypot(red_green.mean(axis=(1, 2)), yellow_blue.mean(axis=(1, 2)))
    return {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "colourfulness": colour,
        "sharpness": across.std(axis=(1, 2)),
    }
