"""Where a server's models come from: a folder, or a version in the registry and the alias that names it."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.files import read_json, write_json

if TYPE_CHECKING:
    from mlx_tasks.registry.mlflow_registry import Registry, Version

logger = logging.getLogger(__name__)

LAST_GOOD = "last_good.json"


@dataclass(frozen=True)
class Served:
    """One version, on this machine's disk.

    Attributes:
        name: of the model.
        version: in the registry; empty for a bare folder.
        folder: the bundle.
        digest: that the bundle must have; empty where nobody has told one.
    """

    name: str
    version: str
    folder: str
    digest: str = ""


class Source(Protocol):
    """What a server asks for its models."""

    def wanted(self) -> Served:
        """The version that should serve now.  Raises: DataError, UnavailableError."""
        ...

    def find(self, reference: str) -> Served:
        """Another version.  Raises: DataError where there is none, UnavailableError."""
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


class FolderSource:
    """One folder, for good."""

    def __init__(self, folder: Path) -> None:
        self._served = Served(folder.resolve().name, "", str(folder.resolve()))

    def wanted(self) -> Served:
        """The folder."""
        return self._served

    def find(self, reference: str) -> Served:
        """Raises: DataError, since a folder has no other versions."""
        raise DataError(f"model: this server has the folder {self._served.name} and no registry, got {reference!r}")

    def versions(self) -> list[dict[str, Any]]:
        """None."""
        return []

    def accepted(self, served: Served) -> None:
        """Nothing to keep."""

    def last_good(self) -> Served | None:
        """Nothing is kept."""
        return None


class RegistrySource:
    """The version that NAME@ALIAS or NAME/VERSION names in MLflow's registry, with copies in a store on this disk.

        STORE/NAME/VERSION/        a version's bundle, put there whole
        STORE/last_good.json       the version that served last

    Used from one thread.
    """

    def __init__(self, uri: str, reference: str, store: Path) -> None:
        """Raises: DataError for a reference of another form; the registry is not asked yet."""
        name = reference.partition("@")[0].partition("/")[0]
        if not name or name == reference or ("/" in reference.partition("@")[0] and "@" in reference):
            raise DataError(f"a model is named NAME@ALIAS or NAME/VERSION, got {reference!r}")
        self.name = name
        self._uri, self._reference, self._store = uri, reference, store
        self._registry: Registry | None = None
        self._sound: set[Path] = set()

    def wanted(self) -> Served:
        """What the reference names now."""
        return self.find(self._reference)

    def find(self, reference: str) -> Served:
        """A version, brought to the store unless it is there."""
        if reference.partition("@")[0].partition("/")[0] != self.name:
            raise DataError(f"model: this server has {self.name}, got {reference!r}")
        return self._fetch(self._connected().resolve(reference))

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
        with contextlib.suppress(OSError):
            write_json(self._store / LAST_GOOD, asdict(served))

    def last_good(self) -> Served | None:
        """The version that served last, where its copy is still here."""
        try:
            served = Served(**read_json(self._store / LAST_GOOD))
        except (OSError, ValueError, TypeError):
            return None
        return served if served.name == self.name and Path(served.folder).is_dir() else None

    def forget(self, keep: set[str]) -> None:
        """Remove copies of versions that nobody needs any more."""
        for folder in (self._store / self.name).glob("*"):
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _connected(self) -> Registry:
        from mlx_tasks.registry.mlflow_registry import Registry

        if self._registry is None:
            self._registry = Registry(self._uri, patience_s=1.0)
        return self._registry

    def _fetch(self, version: Version) -> Served:
        from mlx_tasks.models.digests import bundle_digest, check_digests
        from mlx_tasks.registry.mlflow_registry import DIGEST_TAG

        place = self._store / self.name / version.version
        told = version.tags.get(DIGEST_TAG, "")
        if place.is_dir() and place not in self._sound:
            try:
                check_digests(place)
                if told and bundle_digest(place) != told:
                    raise DataError(f"{place} has another digest than {version.uri}")
            except (DataError, OSError) as error:
                logger.warning("store=damaged %s: fetched again", error)
                shutil.rmtree(place)
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".coming-", dir=place.parent) as coming:
                bundle = self._connected().download(version, Path(coming))
                check_digests(bundle)
                digest = bundle_digest(bundle)
                if told and digest != told:
                    raise DataError(
                        f"{version.uri} was registered with digest {told[:12]}, what came has {digest[:12]}: "
                        "its artifacts were changed"
                    )
                try:
                    bundle.rename(place)
                except OSError as error:
                    raise UnavailableError(f"{place} cannot be written: {error}") from error
        self._sound.add(place)
        return Served(version.name, version.version, str(place), told)
