"""What the manifest says of one image, and its square copies: brightness, sharpness, its look, resizing."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image

_DCT_SIDE = 32
_DCT_LOW = 16
_FLOOR = 4.0
_STRIP = 512


def brightness(image: Image.Image) -> float:
    """Mean luma in [0, 1]: 0 is black.  Luma is ITU-R BT.601's, as Pillow rounds it."""
    histogram = np.asarray(image.convert("L").histogram(), np.float64)
    return float(histogram @ np.arange(256) / histogram.sum() / 255)


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the luma (0..255), over the pixels that have four neighbours; 0 where none has.

    lap = up + down + left + right - 4 * centre.  Computed in strips, so that a large image costs no large copy.
    Comparable between images of one size: a larger picture of the same thing has softer edges per pixel.
    Source: Pech-Pacheco et al. 2000 (the focus measure).
    """
    luma = np.asarray(image.convert("L"))
    height, width = luma.shape
    if min(height, width) < 3:
        return 0.0
    total = squares = 0
    for top in range(0, height - 2, _STRIP):
        x = luma[top : top + _STRIP + 2].astype(np.int32)
        lap = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
        total += int(lap.sum())
        squares += int(np.square(lap).sum(dtype=np.int64))
    count = (height - 2) * (width - 2)
    return squares / count - (total / count) ** 2


class Look(NamedTuple):
    """What an image looks like, coarsely: two of these say whether one image is a copy of the other.

    Attributes:
        bits: 32 bytes, which of the 256 lowest frequencies are strong: few bits apart in a copy.
        shape: (63,) float16 of unit length, the 63 lowest frequencies but the mean: nearly parallel in a copy.
    """

    bits: bytes
    shape: np.ndarray


class Looks(NamedTuple):
    """The looks of N images, by columns.

    Attributes:
        bits: (N, 32) uint8; shapes: (N, 63) float16; as a Look's.
        known: (N,) bool: the others are flat, or were refused.
    """

    bits: np.ndarray
    shapes: np.ndarray
    known: np.ndarray

    @classmethod
    def empty(cls, count: int) -> Looks:
        """None known."""
        return cls(np.zeros((count, 32), np.uint8), np.zeros((count, 63), np.float16), np.zeros(count, bool))

    def put(self, row: int, look: Look | None) -> None:
        """Keep one image's look."""
        if look is not None:
            self.bits[row] = np.frombuffer(look.bits, np.uint8)
            self.shapes[row] = look.shape
            self.known[row] = True


def look(image: Image.Image) -> Look | None:
    """The image's bits and shape, which survive compression, rescaling, light blur; None for a flat image.

    The luma at 32 x 32 goes through an orthonormal DCT-II, c. Bit (i, j), i and j below 16, is whether c[i, j] is above
    the median of all 255 and above 4 grey levels; (0, 0), the mean, gives 0. Without the floor the bits of a smooth
    image are its rounding errors, and a copy of it is not found. With it, images of little detail have few bits and
    come near to strangers: so near duplicates must agree in `shape` too, c's lowest 8 x 8 (duplicates.py).
    docs/data.md has what this finds and what it confuses, beside other hashes.
    Source: Zauner 2010 (the DCT hash); the 16 x 16, the floor and the shape are ours.
    """
    small = np.asarray(image.convert("L").resize((_DCT_SIDE, _DCT_SIDE), Image.Resampling.BICUBIC), np.float64)
    basis = _dct_basis()
    # Rounded, so that the order in which a BLAS sums cannot turn a bit.
    low = np.round(basis @ small @ basis.T, 6)
    low[0, 0] = 0
    strong = low > max(_FLOOR, float(np.median(low.ravel()[1:])))
    if not strong.any():
        return None
    shape = low[:8, :8].ravel()[1:]
    length = np.linalg.norm(shape)
    if length < _FLOOR:
        return None
    return Look(np.packbits(strong).tobytes(), (shape / length).astype(np.float16))


@functools.cache
def _dct_basis() -> np.ndarray:
    """(16, 32): the lowest rows of the orthonormal DCT-II."""
    n = _DCT_SIDE
    frequency, position = np.arange(_DCT_LOW)[:, None], np.arange(n)[None, :]
    basis = np.sqrt(2 / n) * np.cos(np.pi * frequency * (2 * position + 1) / (2 * n))
    basis[0] /= np.sqrt(2)
    return basis


def square(image: Image.Image, resolution: int, channels: int) -> np.ndarray:
    """The centre of the image as (resolution, resolution, channels) uint8.

    The largest centred square is cut out and resized with Pillow's bicubic filter, whose support grows with the factor
    when an image shrinks (antialiased). A square of the right side already comes back as it is, bit for bit.
    channels: 1 (luma) or 3.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    mode = "L" if channels == 1 else "RGB"
    cut = image.crop((left, top, left + side, top + side)).convert(mode)
    if side != resolution:
        cut = cut.resize((resolution, resolution), Image.Resampling.BICUBIC)
    return np.asarray(cut).reshape(resolution, resolution, channels)
