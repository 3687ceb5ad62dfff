"""The accepted images as array files, written and read through plain files so that their number does not matter.

No memory map: its pages count as this process's own memory, seven kilobytes an image at 32 pixels, and a disk that runs
full ends it by a signal where a write gives an error that says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

_BLOCK_BYTES = 16 << 20


class ArrayRows:
    """An array file whose rows are read when they are asked for: what is looked at is all that takes memory.

    Attributes:
        shape: (N, R, R, C).
    """

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r")  # for its header: no page of it is read
        self.shape, self._dtype = mapped.shape, mapped.dtype
        self._path, self._start = path, path.stat().st_size - mapped.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | list[int]) -> np.ndarray:
        """(len(rows), R, R, C)."""
        found = np.empty((len(rows), *self.shape[1:]), self._dtype)
        with self._path.open("rb", buffering=0) as file:
            for row, into in zip(rows, found, strict=True):
                file.seek(self._start + int(row) * into.nbytes)
                file.readinto(into.data)
        return found


class SquareStore:
    """Square images of several resolutions, put down as they come and written out in another order.

    Rows are three channels wide unless the dataset is made grey, because whether all images are grey is known only
    after the last. The store's files lie in `folder` and are removed by `close`.
    """

    def __init__(self, folder: Path, count: int, resolutions: tuple[int, ...], channels: int) -> None:
        self._count = count
        self._shapes = {side: (side, side, channels) for side in resolutions}
        self._paths = {side: folder / f".rows_{side}" for side in resolutions}
        self._files = {side: path.open("w+b") for side, path in self._paths.items()}
        self._next = dict.fromkeys(resolutions, 0)
        for side, file in self._files.items():
            file.truncate(count * side * side * channels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def put(self, row: int, squares: dict[int, np.ndarray]) -> None:
        """Keep one image, one channel repeated where three are kept.  squares: {resolution: (R, R, 1 or 3) uint8}.

        Rows that are put in order cost least.
        """
        for side, pixels in squares.items():
            file, shape = self._files[side], self._shapes[side]
            if row != self._next[side]:
                file.seek(row * side * side * shape[2])
            file.write(np.ascontiguousarray(np.broadcast_to(pixels, shape)).data)
            self._next[side] = row + 1

    def write(self, folder: Path, order: np.ndarray, channels: int) -> None:
        """Write `folder`/R.npy for each resolution: the rows of `order`, (len(order), R, R, channels) uint8.

        The rows are read once, from the first to the last, and each stretch of them that stays together is written
        to its place; `order` is cheap where it has few interleaved ascending runs, as splits give.
        """
        folder.mkdir(parents=True, exist_ok=True)
        place = np.full(self._count, -1)
        place[order] = np.arange(len(order))
        for side, file in self._files.items():
            with (folder / f"{side}.npy").open("wb") as out:
                shape = (len(order), side, side, channels)
                np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
                start, row_bytes = out.tell(), side * side * channels
                file.seek(0)
                stored = side * side * self._shapes[side][2]
                block = max(1, _BLOCK_BYTES // stored)
                for begin in range(0, self._count, block):
                    to = place[begin : begin + block]
                    rows = np.frombuffer(file.read(len(to) * stored), np.uint8).reshape(len(to), *self._shapes[side])
                    kept = np.flatnonzero(to >= 0)
                    kept = kept[np.argsort(to[kept])]
                    for run in np.split(kept, np.flatnonzero(np.diff(to[kept]) != 1) + 1):
                        if len(run):
                            out.seek(start + int(to[run[0]]) * row_bytes)
                            out.write(rows[run][..., :channels].tobytes())

    def close(self) -> None:
        """Remove the store's own files."""
        for side in list(self._files):
            self._files.pop(side).close()
            self._paths[side].unlink(missing_ok=True)
