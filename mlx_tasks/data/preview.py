"""A picture of a dataset: a few training images of each class, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlx_tasks.data.arrays import ArrayRows

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 10
MAX_COLUMNS = 10
_MIN_SIDE = 32


def sample_grid(images: ArrayRows, frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    """The first training images of each class (of all, without classes), a class a row.

    images: (N, R, R, C) uint8; frame: the manifest.  Small images are repeated pixel by pixel to at least 32 a side.
    Returns: (rows * side, columns * side, C) uint8; empty cells are white.
    """
    train = frame[frame["split"] == "train"]
    if names:
        rows = [train.loc[train["class_index"] == c, "index"].tolist()[:MAX_COLUMNS] for c in range(len(names))]
    else:
        flat = train["index"].tolist()[: MAX_ROWS * MAX_COLUMNS]
        rows = [flat[i : i + MAX_COLUMNS] for i in range(0, len(flat), MAX_COLUMNS)]
    rows = rows[:MAX_ROWS]
    side, channels = images.shape[1], images.shape[3]
    columns = max(len(row) for row in rows)
    grid = np.full((len(rows) * side, columns * side, channels), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, index in enumerate(row):
            grid[y * side : (y + 1) * side, x * side : (x + 1) * side] = images[[index]][0]
    factor = -(-_MIN_SIDE // side)
    return grid.repeat(factor, axis=0).repeat(factor, axis=1)
