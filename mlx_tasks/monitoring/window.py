"""A window of served images: a folder of PNGs, each with the class and the model it came from in its text chunks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_tasks.errors import DataError

SUFFIXES = frozenset({".png"})


@dataclass(frozen=True)
class Window:
    """What could be read.

    Attributes:
        images: (N, H, W, C) uint8.
        classes: N class names; "" where an image names none.
        unreadable: names of the files that are no image of the expected shape, with the reason.
    """

    images: np.ndarray
    classes: tuple[str, ...]
    unreadable: dict[str, str]


def read_window(folder: Path, side: int, channels: int, most: int = 2000) -> Window:
    """The newest `most` images under a folder, oldest first.

    Raises: DataError where there is no such folder.
    """
    from PIL import Image

    if not folder.is_dir():
        raise DataError(f"no folder of images at {folder}")
    paths = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    paths = sorted(paths, key=lambda path: (path.stat().st_mtime, path.name))[-most:]
    images, classes, unreadable = [], [], {}
    for path in paths:
        try:
            with Image.open(path) as image:
                if image.size != (side, side):
                    raise ValueError(f"{image.width} x {image.height} pixels, the bundle draws {side} x {side}")
                pixels = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(side, side, channels)
                named = str(image.info.get("class", ""))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unreadable[path.relative_to(folder).as_posix()] = str(error)
            continue
        images.append(pixels)
        classes.append(named)
    stacked = np.stack(images) if images else np.zeros((0, side, side, channels), np.uint8)
    return Window(stacked, tuple(classes), unreadable)
