"""The dataset that a run's params name: where it is, and a name for it that holds in the run's workspace."""

from __future__ import annotations

import contextlib
import filecmp
import os
from pathlib import Path

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError
from mlx_tasks.params import parse_config


def dataset_folder(repository: Path, config: Config) -> Path | None:
    """The folder of images that the params name; None for a card.  Raises: DataError for a name that is no path."""
    place = _place(repository, config.data.path)
    return place if place.is_dir() else None


def with_dataset(repository: Path, workspace: Path, config: Config, edited: bool = False) -> Config:
    """The tree with a dataset's name that holds in the workspace.

    A name relative to the checkout stays where the workspace has the same files; else it becomes absolute, so that no
    commit need hold the images.

    edited: whether the checkout has edits in the dataset's folder that the workspace has not.
    Raises: DataError for a relative name of nothing.
    """
    place, named = _place(repository, config.data.path), config.data.path
    if not Path(named).expanduser().is_absolute():
        inside = place.resolve().is_relative_to(repository.resolve())
        if inside and not edited and _same(place, workspace / named):
            return config
        if not place.exists():
            raise DataError(
                f"data.path: {named!r} is neither in the checkout {repository} nor an absolute path: name a folder of "
                "images, or a card under include/datasets/"
            )
    if str(place) == named:
        return config
    tree = config.dump()
    tree["data"]["path"] = str(place)
    return parse_config(tree)


def _place(repository: Path, named: str) -> Path:
    """Where the dataset is; `..` is taken out as the disk has it."""
    try:
        place = repository / Path(named).expanduser()
        place = place.resolve() if ".." in place.parts and "\0" not in named else place
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            place.stat()  # a name may be too long, or hold a zero
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"data.path: {named!r:.200} is no path: {error}") from None
    return place


def _same(one: Path, other: Path) -> bool:
    """Whether two places hold the same file, or folders of files with the same names and sizes."""
    if one.is_file() and other.is_file():
        return filecmp.cmp(one, other, shallow=False)
    return one.is_dir() and other.is_dir() and _files(one) == _files(other)


def _files(folder: Path) -> dict[str, int]:
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found
