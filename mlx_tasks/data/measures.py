"""What the manifest says of one image, and its square copies: brightness, sharpness, perceptual hash, resizing."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

HASH_BITS = 256
_HASH_SIDE = 32
_HASH_LOW = 16
_FLAT_STD = 1.0
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


def perceptual_hash(image: Image.Image) -> bytes | None:
    """256 bits that a copy shares with its original, re-compressed, rescaled or brightened; None for a flat image.

    The luma at 32 x 32 goes through a DCT-II; each of the 16 x 16 lowest frequencies gives one bit, whether it is above
    their median. The mean (frequency 0, 0) says nothing of the shape and gives 0. A flat image has no shape to hash.
    Chosen over a difference and a mean hash by measuring (docs/data.md): on the 8-pixel digits those two call
    hundreds of different drawings the same within 8 bits, and this one none within 24.
    Source: Zauner 2010 (the DCT hash), at 16 x 16 bits for its 8 x 8, and the median over all of them but the mean's.
    """
    small = np.asarray(image.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BICUBIC), np.float64)
    if small.std() < _FLAT_STD:
        return None
    basis = _dct_basis()
    # Rounded, so that the order in which a BLAS sums cannot turn a bit.
    low = np.round(basis @ small @ basis.T, 6).ravel()
    bits = low > np.median(low[1:])
    bits[0] = False
    return np.packbits(bits).tobytes()


@functools.cache
def _dct_basis() -> np.ndarray:
    """(16, 32): the lowest rows of the orthonormal DCT-II."""
    n = _HASH_SIDE
    frequency, position = np.arange(_HASH_LOW)[:, None], np.arange(n)[None, :]
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
