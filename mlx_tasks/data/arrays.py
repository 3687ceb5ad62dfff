"""The accepted images as array files, written through memory maps so that their number does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

_BLOCK_BYTES = 32 << 20


class SquareStore:
    """Square images of several resolutions, put down as they come and written out in another order.

    Rows are three channels wide unless the dataset is made grey, because whether all images are grey is known only
    after the last. The store's files lie in `folder` and are removed by `close`.
    """

    def __init__(self, folder: Path, count: int, resolutions: tuple[int, ...], channels: int) -> None:
        self._folder = folder
        self._rows = {
            side: np.lib.format.open_memmap(
                folder / f".rows_{side}.npy", mode="w+", dtype=np.uint8, shape=(count, side, side, channels)
            )
            for side in resolutions
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def put(self, row: int, squares: dict[int, np.ndarray]) -> None:
        """Keep one image, one channel repeated where three are kept.  squares: {resolution: (R, R, 1 or 3) uint8}."""
        for side, pixels in squares.items():
            self._rows[side][row] = pixels

    def write(self, folder: Path, order: np.ndarray, channels: int) -> None:
        """Write `folder`/R.npy for each resolution: the rows of `order`, (len(order), R, R, channels) uint8."""
        folder.mkdir(parents=True, exist_ok=True)
        for side, rows in self._rows.items():
            shape = (len(order), side, side, channels)
            out = np.lib.format.open_memmap(folder / f"{side}.npy", mode="w+", dtype=np.uint8, shape=shape)
            block = max(1, _BLOCK_BYTES // (side * side * channels))
            for begin in range(0, len(order), block):
                out[begin : begin + block] = rows[order[begin : begin + block]][..., :channels]
            out.flush()
            del out

    def close(self) -> None:
        """Remove the store's own files."""
        for side in list(self._rows):
            del self._rows[side]
            (self._folder / f".rows_{side}.npy").unlink(missing_ok=True)
