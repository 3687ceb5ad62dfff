"""What a source offers, by columns: a candidate becomes an object when it is asked for, and a million take little."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from mlx_tasks.data.columns import Categories, Texts
from mlx_tasks.data.loader import SPLITS


@dataclass(slots=True)
class Candidate:
    """One image that the source offers, before it is looked at.

    Attributes:
        path: its name in the manifest: relative to the dataset's folder, `/` between, NFC.
        file: where it lies, or None where `pixels` holds it.
        pixels: (H, W) or (H, W, 3) uint8, for sets that are no files.
        label: NFC text, or None.
        caption: NFC text, or None.
        given_split: train, validation or test where the source's folders say so.
        problem: (reason, detail) where the source itself already says that it cannot be used.
    """

    path: str
    file: Path | None = None
    pixels: np.ndarray | None = None
    label: str | None = None
    caption: str | None = None
    given_split: str | None = None
    problem: tuple[str, str] | None = None


class Listing(Sequence[Candidate]):
    """Candidates in order, some thirty bytes each beside their path and caption.

    Attributes:
        paths, captions: as the candidates'; a caption that is None is empty.
        labels: as the candidates'.
        folder: where the files lie, or None for a set that is no files.
        images: (N, H, W) or (N, H, W, 3) uint8 of such a set.
    """

    def __init__(self, folder: Path | None = None, images: np.ndarray | None = None) -> None:
        self.folder = folder
        self.images = images
        self.paths = Texts()
        self.captions = Texts()
        self.labels = Categories()
        self._given = array("b")
        self._file_names: dict[int, str | None] = {}
        self._problems: dict[int, tuple[str, str]] = {}

    def append(
        self,
        path: str,
        file_name: str | None = None,
        label: str | None = None,
        caption: str | None = None,
        given_split: str | None = None,
        problem: tuple[str, str] | None = None,
    ) -> None:
        """Put one at the end.  file_name: relative to the folder, None where there is no file."""
        row = len(self)
        if self.folder is not None and file_name != path:
            self._file_names[row] = file_name
        if problem is not None:
            self._problems[row] = problem
        self.paths.append(path)
        self.captions.append(caption or "")
        self.labels.append(label)
        self._given.append(-1 if given_split is None else SPLITS.index(given_split))

    @property
    def given(self) -> np.ndarray:
        """(N,) int8: the place in SPLITS of the split that the source gives, -1 where it gives none."""
        return np.frombuffer(self._given, np.int8)

    def problem(self, row: int) -> tuple[str, str] | None:
        """Why the source itself says that the row's image cannot be used."""
        return self._problems.get(row)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, row: int) -> Candidate: ...
    @overload
    def __getitem__(self, row: slice) -> list[Candidate]: ...
    def __getitem__(self, row: int | slice) -> Candidate | list[Candidate]:
        if isinstance(row, slice):
            return [self._candidate(i) for i in range(*row.indices(len(self)))]
        return self._candidate(range(len(self))[row])

    def __iter__(self) -> Iterator[Candidate]:
        return (self._candidate(row) for row in range(len(self)))

    def _candidate(self, row: int) -> Candidate:
        path, given = self.paths[row], self._given[row]
        file_name = self._file_names.get(row, path)
        return Candidate(
            path=path,
            file=None if self.folder is None or file_name is None else self.folder / file_name,
            pixels=None if self.images is None else self.images[row],
            label=self.labels[row],
            caption=self.captions[row] or None,
            given_split=None if given < 0 else SPLITS[given],
            problem=self._problems.get(row),
        )
