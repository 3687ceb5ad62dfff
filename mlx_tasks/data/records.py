"""What looking at the images gave, by columns of fixed width: 270 bytes an image, 160 of which go after grouping."""

from __future__ import annotations

import numpy as np

from mlx_tasks.data.columns import Categories
from mlx_tasks.data.inspection import Inspected
from mlx_tasks.data.measures import Looks


class Records:
    """What `inspect_one` said of each candidate, but its squares, in their order.

    Attributes:
        sha256, pixels_sha256: (N, 32) uint8.
        decoded: (N,) bool: without it the hashes and the measures say nothing.
        width, height: (N,) uint32.  size_bytes: (N,) int64.  grey: (N,) bool.
        brightness, sharpness: (N,) float64, NaN where not decoded.
        mode, converted: texts, few different.
        refusals: {row: (reason, detail)} of the refused.
        looks: of the N images.
    """

    def __init__(self, count: int) -> None:
        self.sha256 = np.zeros((count, 32), np.uint8)
        self.pixels_sha256 = np.zeros((count, 32), np.uint8)
        self.decoded = np.zeros(count, bool)
        self.width = np.zeros(count, np.uint32)
        self.height = np.zeros(count, np.uint32)
        self.size_bytes = np.zeros(count, np.int64)
        self.grey = np.zeros(count, bool)
        self.brightness = np.full(count, np.nan)
        self.sharpness = np.full(count, np.nan)
        self.mode = Categories()
        self.converted = Categories()
        self.refusals: dict[int, tuple[str, str]] = {}
        self.looks = Looks.empty(count)

    def append(self, seen: Inspected) -> None:
        """Keep the next candidate's."""
        row = len(self.mode)
        self.mode.append(seen.mode)
        self.converted.append(seen.converted)
        self.width[row], self.height[row] = seen.width, seen.height
        if seen.reason:
            self.refusals[row] = (seen.reason, seen.detail)
            return
        self.decoded[row] = True
        self.sha256[row] = np.frombuffer(bytes.fromhex(seen.sha256), np.uint8)
        self.pixels_sha256[row] = np.frombuffer(bytes.fromhex(seen.pixels_sha256), np.uint8)
        self.size_bytes[row] = seen.size_bytes
        self.grey[row] = seen.grey
        self.brightness[row], self.sharpness[row] = seen.brightness, seen.sharpness
        self.looks.put(row, seen.look)

    def __len__(self) -> int:
        return len(self.mode)

    def accepted(self) -> np.ndarray:
        """(A,) int64, the rows that are not refused, in order."""
        kept = np.ones(len(self), bool)
        kept[list(self.refusals)] = False
        return np.flatnonzero(kept)
