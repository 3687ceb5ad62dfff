"""Copies of registered versions on this disk, which the servers of a machine share.

STORE/NAME/VERSION/               a version's bundle, put there whole
STORE/NAME/.locks/VERSION.use     held, with others, by every server that has the version; alone, by who removes it
STORE/NAME/.locks/VERSION.bring   held alone by who brings, mends or removes the copy
STORE/NAME/.coming/VERSION/       a copy on its way
STORE/last_good/REFERENCE.json    what served last where that reference is followed
STORE/refused/                    see `failed`
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from mlx_tasks.errors import BusyError, DataError, UnavailableError
from mlx_tasks.files import write_json
from mlx_tasks.locks import held
from mlx_tasks.models.json_file import read_mapping

if TYPE_CHECKING:
    from mlx_tasks.serving.library import Served

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""For another server that is bringing the same version."""


class Store:
    """One server's view of the store: what it uses stays, whatever others forget.  Used from one thread."""

    def __init__(self, folder: Path, name: str, reference: str) -> None:
        self.folder = folder
        self._name = name
        self._last_good = folder / "last_good" / f"{quote(reference, safe='@')}.json"
        self._uses: dict[str, IO[str]] = {}

    def place(self, version: str) -> Path:
        """Where a version's copy lies.  Raises: DataError for a version that is no number."""
        if not (version.isascii() and version.isdigit()):
            raise DataError(f"versions are numbers, the registry names {version!r:.80}")
        return self.folder / self._name / version

    def bring(self, version: str, sound: Callable[[Path], str], download: Callable[[Path], Path]) -> Path:
        """A version's copy, in use by this server from now on; brought unless there is a sound one.

        sound: what is wrong with a copy, in words, or nothing; download: brings the bundle under a folder.
        Raises: DataError and UnavailableError as `download`; UnavailableError where another server takes too long.
        """
        place, coming = self.place(version), self.folder / self._name / ".coming" / version
        with self._bringing(version, PATIENCE_S):
            self._use(version)
            problem = sound(place) if place.is_dir() else "it is not here yet"
            if not problem:
                return place
            if place.is_dir():
                logger.warning("store=damaged %s: fetched again", problem)
            try:
                shutil.rmtree(coming, ignore_errors=True)
                coming.mkdir(parents=True)
                bundle = download(coming)
                try:
                    if place.is_dir():
                        place.rename(coming / ".damaged")
                    bundle.rename(place)
                except OSError as error:
                    raise UnavailableError(f"{place} cannot be written: {error}") from error
            except BaseException:
                self._leave(version)
                raise
            finally:
                shutil.rmtree(coming, ignore_errors=True)
        return place

    def keep(self, versions: set[str]) -> None:
        """Use these alone; remove every copy that no server uses and none would start with."""
        for version in set(self._uses) - versions:
            self._leave(version)
        versions = versions | self._started_with()
        root = self.folder / self._name
        for folder in (*root.glob("[0-9]*"), *(root / ".coming").glob("*")):
            if folder.name not in versions:
                self._remove(folder)

    def accepted(self, served: Served) -> None:
        """Remember what serves for a start without the registry."""
        with contextlib.suppress(OSError):
            write_json(self._last_good, asdict(served))

    def last_good(self) -> Served | None:
        """What served last where this reference is followed, if its copy is still here."""
        served = _read(self._last_good)
        return served if served and served.name == self._name and Path(served.folder).is_dir() else None

    def _started_with(self) -> set[str]:
        """Versions that some server would start with if the registry were away."""
        found = map(_read, (self.folder / "last_good").glob("*.json"))
        return {served.version for served in found if served and served.name == self._name}

    def _remove(self, folder: Path) -> None:
        """Remove a copy unless somebody uses it."""
        with contextlib.suppress(UnavailableError, OSError), self._bringing(folder.name, 0.0):
            with self._lock(folder.name, "use").open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _bringing(self, version: str, wait_s: float) -> Iterator[None]:
        holder = f"a server of {self._name}"
        try:
            with held(self._lock(version, "bring"), holder, what=f"{self._name}/{version}'s copy", wait_s=wait_s):
                yield
        except BusyError as error:
            raise UnavailableError(str(error)) from None

    def _use(self, version: str) -> None:
        """Hold the version's copy; nobody removes it meanwhile, since the caller holds its `bring`."""
        if version not in self._uses:
            file = self._lock(version, "use").open("a+")
            fcntl.flock(file, fcntl.LOCK_SH)
            self._uses[version] = file

    def _leave(self, version: str) -> None:
        file = self._uses.pop(version, None)
        if file is not None:
            file.close()

    def _lock(self, version: str, kind: str) -> Path:
        path = self.folder / self._name / ".locks" / f"{version}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _read(path: Path) -> Served | None:
    """What `accepted` wrote, or None."""
    from mlx_tasks.serving.library import Served

    try:
        told = read_mapping(path)
        served = Served(**told)
    except (DataError, TypeError):
        return None
    return served if all(isinstance(value, str) for value in told.values()) and os.path.isabs(served.folder) else None
