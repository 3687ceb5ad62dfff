"""Images tiled into one: sample grids, denoising strips, and a row out of a grid."""

from __future__ import annotations

import io

import numpy as np

GAP = 2
"""Pixels between tiles, before enlargement."""


def tile(images: np.ndarray, background: int = 255) -> np.ndarray:
    """Rows and columns of images as one image with gaps.

    images: (rows, columns, H, W, C) uint8. Returns: (rows*(H+GAP)+GAP, columns*(W+GAP)+GAP, C) uint8.
    """
    rows, columns, height, width, channels = images.shape
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), background, np.uint8)
    for i in range(rows):
        for j in range(columns):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
            sheet[top : top + height, left : left + width] = images[i, j]
    return sheet


def class_rows(images: np.ndarray, labels: np.ndarray | None, columns: int = 8, max_rows: int = 16) -> np.ndarray:
    """The first `columns` images of each class, a row a class; without labels the first in reading order.

    A class with too few images has its row filled up with white. images: (N, H, W, C) uint8; labels: (N,).
    Returns: (rows, columns, H, W, C) uint8.
    """
    if labels is None:
        rows = min(max_rows, 8, -(-len(images) // columns))
        chosen = [list(range(i * columns, min((i + 1) * columns, len(images)))) for i in range(rows)]
    else:
        chosen = [np.flatnonzero(labels == c)[:columns].tolist() for c in np.unique(labels)[:max_rows]]
    sheet = np.full((len(chosen), columns, *images.shape[1:]), 255, np.uint8)
    for row, members in zip(sheet, chosen, strict=True):
        row[: len(members)] = images[members]
    return sheet


def first_of_rows(png: bytes, side: int) -> bytes | None:
    """The first image of each row of a `class_rows` sheet beside each other, as PNG bytes; None for another picture.

    side: of an image (pixels).
    """
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    height, width = sheet.shape[:2]
    columns = 8
    factor, rest = divmod(width, columns * (side + GAP) + GAP)
    if rest or factor < 1 or (height // factor - GAP) % (side + GAP):
        return None
    small = sheet[::factor, ::factor]
    rows = (len(small) - GAP) // (side + GAP)
    tops = [GAP + i * (side + GAP) for i in range(rows)]
    images = np.stack([small[top : top + side, GAP : GAP + side] for top in tops])
    return png_bytes(tile(images[None]))


def png_bytes(sheet: np.ndarray, min_width: int = 512) -> bytes:
    """A PNG of (H, W, C) uint8, C 1 or 3, enlarged by a whole factor without smoothing to at least min_width pixels."""
    from PIL import Image

    picture = Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet)
    factor = max(1, round(min_width / picture.width))
    buffer = io.BytesIO()
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(
        buffer, format="PNG", optimize=True
    )
    return buffer.getvalue()
