"""Where a server's models come from: a folder, or a version in the registry and the alias that names it."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlx_tasks.errors import DataError
from mlx_tasks.serving.store import Store

if TYPE_CHECKING:
    from mlx_tasks.registry.mlflow_registry import Registry, Version

logger = logging.getLogger(__name__)

MOST_FILES = 1000


@dataclass(frozen=True)
class Served:
    """One version.

    Attributes:
        name: of the model.
        version: in the registry; empty for a bare folder.
        folder: the bundle, on this disk once it was fetched.
        digest: of what makes its images, as it was registered; empty where nobody has told one.
        content: of all of its files, as it was registered; of a bare folder, of its files' sizes and times.
    """

    name: str
    version: str
    folder: str
    digest: str = ""
    content: str = ""

    @property
    def id(self) -> str:
        """NAME/VERSION, or a bare folder's name."""
        return f"{self.name}/{self.version}" if self.version else self.name

    @property
    def stamp(self) -> list[str]:
        """What changes where the version's files do."""
        return [self.digest, self.content]


class Source(Protocol):
    """What a server asks for its models."""

    @property
    def store(self) -> Path | None:
        """Where what failed is remembered; None: in memory."""
        ...

    def wanted(self) -> Served:
        """The version that should serve now, which may not be here yet.  Raises: DataError, UnavailableError."""
        ...

    def find(self, reference: str) -> Served:
        """Another version, which may not be here yet.  Raises: DataError where there is none, UnavailableError."""
        ...

    def fetch(self, served: Served) -> None:
        """Bring it to its folder, unless it is there and sound.  Raises: DataError for what may not serve, and
        UnavailableError."""
        ...

    def versions(self) -> list[dict[str, Any]]:
        """[{version, aliases, candidate, created}], newest first.  Raises: UnavailableError."""
        ...

    def accepted(self, served: Served) -> None:
        """It serves: what is kept for a start without the registry."""
        ...

    def last_good(self) -> Served | None:
        """What served last, if it is still on this disk."""
        ...

    def keep(self, folders: set[str]) -> None:
        """These are in use, and nothing else is any more."""
        ...


class FolderSource:
    """One folder, for good."""

    store: Path | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def wanted(self) -> Served:
        """The folder, as it stands."""
        return Served(self._folder.name, "", str(self._folder), content=_stamp(self._folder))

    def find(self, reference: str) -> Served:
        """Raises: DataError, since a folder has no other versions."""
        raise DataError(f"model: this server has the folder {self._folder.name} and no registry, got {reference!r:.80}")

    def fetch(self, served: Served) -> None:
        """It is here."""

    def versions(self) -> list[dict[str, Any]]:
        """None."""
        return []

    def accepted(self, served: Served) -> None:
        """Nothing to keep."""

    def last_good(self) -> Served | None:
        """Nothing is kept."""
        return None

    def keep(self, folders: set[str]) -> None:
        """Nothing to forget."""


class RegistrySource:
    """The version that NAME@ALIAS or NAME/VERSION names in MLflow's registry, with copies in a `Store`.

    Used from one thread.
    """

    def __init__(self, uri: str, reference: str, store: Path) -> None:
        """Raises: DataError for a reference of another form; the registry is not asked yet."""
        name = reference.partition("@")[0].partition("/")[0]
        if not name or name == reference or ("/" in reference.partition("@")[0] and "@" in reference):
            raise DataError(f"a model is named NAME@ALIAS or NAME/VERSION, got {reference!r:.80}")
        if name.startswith("."):
            raise DataError(f"a model's name begins with no dot, got {name!r:.80}")
        self.name = name
        self.store = store.resolve()
        self._uri, self._reference = uri, reference
        self._copies = Store(self.store, name, reference)
        self._registry: Registry | None = None
        self._sound: set[tuple[str, ...]] = set()

    def wanted(self) -> Served:
        """What the reference names now."""
        return self.find(self._reference)

    def find(self, reference: str) -> Served:
        """A version, as it is registered."""
        if reference.partition("@")[0].partition("/")[0] != self.name:
            raise DataError(f"model: this server has {self.name}, got {reference!r:.80}")
        return self._served(self._connected().resolve(reference))

    def fetch(self, served: Served) -> None:
        """A version's copy, brought to the store unless it is there."""
        key = (served.version, *served.stamp)
        if key in self._sound and Path(served.folder).is_dir():
            return
        self._copies.bring(served.version, lambda place: _problem(place, served), lambda to: self._download(served, to))
        self._sound.add(key)

    def versions(self) -> list[dict[str, Any]]:
        """Every version of the model, newest first."""
        registry = self._connected()
        found = sorted(registry.versions(self.name), key=lambda one: -int(one.version))
        aliases = registry.aliases(self.name)
        return [
            {
                "id": f"{self.name}/{one.version}",
                "version": one.version,
                "aliases": sorted(alias for alias, version in aliases.items() if version == one.version),
                "candidate": one.tags.get("mlx_tasks.candidate", ""),
            }
            for one in found
        ]

    def accepted(self, served: Served) -> None:
        """Remember it for a start without the registry."""
        self._copies.accepted(served)

    def last_good(self) -> Served | None:
        """The version that served last, where its copy is still here."""
        return self._copies.last_good()

    def keep(self, folders: set[str]) -> None:
        """Remove copies of versions that no server needs any more."""
        versions = {Path(folder).name for folder in folders}
        self._sound = {key for key in self._sound if key[0] in versions}
        self._copies.keep(versions)

    def _connected(self) -> Registry:
        from mlx_tasks.registry.mlflow_registry import Registry

        if self._registry is None:
            self._registry = Registry(self._uri, patience_s=1.0)
        return self._registry

    def _served(self, version: Version) -> Served:
        from mlx_tasks.registry.mlflow_registry import CONTENT_TAG, DIGEST_TAG

        told = [version.tags.get(tag, "") for tag in (DIGEST_TAG, CONTENT_TAG)]
        return Served(version.name, version.version, str(self._copies.place(version.version)), *told)

    def _download(self, served: Served, folder: Path) -> Path:
        registry = self._connected()
        return registry.download(registry.resolve(served.id), folder)


def _problem(place: Path, served: Served) -> str:
    """What is wrong with a copy, or nothing."""
    from mlx_tasks.models.digests import bundle_digest, check_digests, content_digest

    try:
        check_digests(place)
        for told, found in ((served.digest, bundle_digest(place)), (served.content, content_digest(place))):
            if told and told != found:
                return f"{place} has the digest {found[:12] or 'none'}, {served.id} was registered with {told[:12]}"
    except (DataError, OSError) as error:
        return str(error)
    return ""


def _stamp(folder: Path) -> str:
    """Of names, sizes and times of a folder's files: another one once a file was changed."""
    digest = hashlib.sha256()
    for count, (place, folders, names) in enumerate(os.walk(folder)):
        folders.sort()
        for name in sorted(names)[:MOST_FILES]:
            try:
                found = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            digest.update(f"{place}/{name} {found.st_size} {found.st_mtime_ns}\n".encode(errors="replace"))
        if count >= MOST_FILES:
            break
    return digest.hexdigest()
