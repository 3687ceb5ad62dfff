"""Images to be scored, read batch by batch: a folder of files, or one .npy array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_tasks.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass
class ImageFiles:
    """A set of images on disk.

    Attributes:
        path: the folder or the .npy file.
        resolution: side to which images are squeezed (PIL, bicubic); None keeps their own sizes.
        count: how many are taken, in the order of their names; None for all.
        skip_broken: leave out what does not decode instead of failing.
        broken: names of files that did not decode, with the reason, filled while reading.
    """

    path: Path
    resolution: int | None = None
    count: int | None = None
    skip_broken: bool = False
    broken: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_dir():
            names = (p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            self._names = sorted(names)[: self.count]
            self._array = None
        elif self.path.suffix == ".npy" and self.path.is_file():
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if array.ndim != 4 or array.dtype != np.uint8 or array.shape[-1] not in (1, 3):
                raise DataError(f"{self.path} must hold (N, H, W, 1 or 3) uint8, got {array.dtype} {array.shape}")
            self._array, self._names = array[: self.count], []
        else:
            raise DataError(f"{self.path} is neither a folder of images nor a .npy file")
        if len(self) < 2:
            raise DataError(
                f"{self.path} has {len(self)} image(s): a score needs at least 2 ({', '.join(sorted(SUFFIXES))})"
            )

    def __len__(self) -> int:
        return len(self._names) if self._array is None else len(self._array)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """(B, H, W, 3) uint8, B at most `size`; images of different sizes come in batches of their own.

        Raises: DataError for a file that does not decode, unless they are skipped.
        """
        waiting: list[np.ndarray] = []
        for image in self._images():
            if waiting and (len(waiting) == size or image.shape != waiting[0].shape):
                yield np.stack(waiting)
                waiting = []
            waiting.append(image)
        if waiting:
            yield np.stack(waiting)

    def _images(self) -> Iterator[np.ndarray]:
        from PIL import Image

        sources = self._names if self._array is None else range(len(self._array))
        for source in sources:
            if isinstance(source, Path):
                try:
                    with Image.open(source) as file:
                        picture = file.convert("RGB")
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    self.broken[source.name] = str(error).splitlines()[0] if str(error) else type(error).__name__
                    if not self.skip_broken:
                        raise DataError(
                            f"{source} does not decode ({self.broken[source.name]}): remove it, or use --skip-broken"
                        ) from None
                    continue
            else:
                assert self._array is not None
                pixels = np.asarray(self._array[source])
                picture = Image.fromarray(np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels)
            if self.resolution and picture.size != (self.resolution, self.resolution):
                picture = picture.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)
            yield np.asarray(picture)
