"""Images as PNG bytes with text chunks, so that a picture names the model and the seed it came from."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np


def encode_png(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """PNG bytes of pixels (H, W, 1 or 3) uint8; `text` becomes tEXt chunks (iTXt where it is not Latin-1)."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"pixels must be (H, W, 1 or 3) uint8, got {pixels.shape} {pixels.dtype}")
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """Pixels (H, W, 1 or 3) uint8 of PNG bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("L" if image.mode in ("L", "1", "I;16") else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels
