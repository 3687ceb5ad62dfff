"""Images to be scored, read batch by batch as `validate` reads them: a folder of files, or one .npy array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from mlx_tasks.config import Data
from mlx_tasks.data.children import Lost, in_children
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.inspection import bounds, decode_candidate
from mlx_tasks.data.layout import read_layout
from mlx_tasks.data.listing import Candidate
from mlx_tasks.data.reasons import Refusal
from mlx_tasks.data.subset import drawn_subset
from mlx_tasks.data.told import counts, escaped
from mlx_tasks.data.tree import Tree, read_tree
from mlx_tasks.errors import DataError

_RULES = Rules(min_side=1, max_pixels=Data().max_pixels, max_aspect_ratio=float(Data().max_pixels))
"""Every picture that can be decoded is scored, small or long."""


@dataclass
class ImageFiles:
    """A set of images on disk.

    Attributes:
        path: the folder or the .npy file.
        resolution: side to which images are squeezed (PIL, bicubic); None keeps their own sizes.
        count: how many are taken, by the seed and spread over the class folders; None for all.
        seed: of that draw.
        skip_broken: leave out what does not decode instead of failing.
        broken: files that did not decode, with the reason, filled while reading.
        notes: what lies in the folder and is not scored, and what was asked for and is not there.
    """

    path: Path
    resolution: int | None = None
    count: int | None = None
    seed: int = 0
    skip_broken: bool = False
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.is_dir():
            tree = read_tree(self.path)
            self._candidates = _listed(tree)
            if tree.passed_over:
                self.notes.append(f"passed over in {escaped(str(self.path))}: {escaped(counts(tree.passed_over))}")
        elif self.path.suffix == ".npy" and self.path.is_file():
            self._candidates = _rows(self.path)
        else:
            raise DataError(f"{self.path} is neither a folder of images nor a .npy file")
        for option, least in (("resolution", 1), ("count", 2)):
            value = getattr(self, option)
            if value is not None and value < least:
                raise DataError(f"--{option} must be at least {least}, got {value}")
        if len(self) < 2:
            raise DataError(
                f"{self.path} has {len(self)} image(s): a score needs at least 2. {' '.join(self.notes)}".rstrip()
            )
        if self.count is not None:
            if self.count > len(self):
                self.notes.append(f"{self.path} has {len(self)} images, fewer than --count {self.count}: all are taken")
            names, classes = zip(*((one.path, one.label) for one in self._candidates), strict=True)
            chosen = drawn_subset(names, classes, self.count, self.seed)
            self._candidates = [self._candidates[place] for place in chosen]

    def __len__(self) -> int:
        return len(self._candidates)

    @property
    def names(self) -> list[str]:
        """The images taken, in order."""
        return [one.path for one in self._candidates]

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
        look = partial(_pixels, resolution=self.resolution)
        in_files = self.path.is_dir()  # a damaged one may take its decoder's process down
        found = in_children(look, self._candidates, 1, bounds(_RULES)) if in_files else map(look, self._candidates)
        for candidate, pixels in zip(self._candidates, found, strict=True):
            if isinstance(pixels, np.ndarray):
                yield pixels
                continue
            self.broken[candidate.path] = f"corrupt: {pixels.why}" if isinstance(pixels, Lost) else pixels
            if not self.skip_broken:
                raise DataError(
                    f"{self.path / candidate.path} does not decode ({self.broken[candidate.path]}): remove it, or "
                    "use --skip-broken"
                )


def _pixels(candidate: Candidate, resolution: int | None) -> np.ndarray | str:
    """(H, W, 3) uint8, or why there is none."""
    from PIL import Image

    try:
        if candidate.problem is not None:
            raise Refusal(*candidate.problem)
        picture = decode_candidate(candidate, _RULES).image.convert("RGB")
    except Refusal as refusal:
        return f"{refusal.reason}: {refusal.detail}"
    if resolution and picture.size != (resolution, resolution):
        picture = picture.resize((resolution, resolution), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _listed(tree: Tree) -> list[Candidate]:
    """A folder's pictures in the order of their paths, with their class folders; what metadata says is not asked."""
    classes = read_layout(tree.paths).classes
    found = [
        Candidate(path, tree.folder / tree.file_name(path), label=classes.get(path.rpartition("/")[0]))
        for path in tree.paths
    ]
    found += [Candidate(path, problem=problem) for path, problem in tree.refused.items()]
    return sorted(found, key=lambda one: one.path)


def _rows(path: Path) -> list[Candidate]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no .npy array: {error}") from None
    if array.ndim != 4 or array.dtype != np.uint8 or array.shape[-1] not in (1, 3):
        raise DataError(f"{path} must hold (N, H, W, 1 or 3) uint8, got {array.dtype} {array.shape}")
    if array.shape[-1] == 1:
        array = array[..., 0]
    return [Candidate(f"{row:09}", pixels=pixels) for row, pixels in enumerate(array)]
