"""Artifacts by hash, in this machine's DVC cache and in the store: those that no run's dvc.lock names any more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlx_tasks.errors import UnavailableError
from mlx_tasks.retention.plan import Area, Item
from mlx_tasks.retention.registry import Registered
from mlx_tasks.retention.runs import KnownRun
from mlx_tasks.workspace import git
from mlx_tasks.workspace.outs import LOCK_FILE, entry_digest
from mlx_tasks.workspace.paths import Places
from mlx_tasks.workspace.store import open_store


@dataclass
class Needed:
    """What must stay.

    Attributes:
        hashes: of files and, with .dir, of folders' lists.
        records: digests of lock entries, by which records of stages are kept.
        why: why nothing at all may go; empty where it may.
    """

    hashes: set[str] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    why: str = ""


@dataclass(frozen=True)
class Depot:
    """A place of artifacts: the cache, or the store.  fs: an fsspec filesystem; root: the folder in it."""

    title: str
    fs: Any
    root: str

    def files(self, below: str) -> Iterator[tuple[str, int, float]]:
        """(path, bytes, time of change) of every file below a folder of it."""
        place = f"{self.root}/{below}"
        self.fs.invalidate_cache()
        if self.fs.exists(place):
            for path, told in self.fs.find(place, detail=True).items():
                when = told.get("mtime") or told.get("LastModified") or 0.0
                yield (
                    path,
                    int(told.get("size") or 0),
                    float(when if isinstance(when, (int, float)) else when.timestamp()),
                )

    def read(self, hash_: str) -> bytes | None:
        """An object's bytes, or None where it is not here."""
        try:
            return self.fs.cat_file(f"{self.root}/files/md5/{hash_[:2]}/{hash_[2:]}")
        except FileNotFoundError:
            return None

    def item(self, path: str, size: int) -> Item:
        """A file of it, as what would go."""
        return Item(path, size, _Removal(self.fs, path))


class _Removal:
    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path

    def __call__(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path)


def depots(places: Places) -> list[Depot]:
    """The store and the cache, in the order in which they are cleaned."""
    from fsspec.implementations.local import LocalFileSystem

    store, root = open_store(places)
    return [Depot("store", store, root), Depot("cache", LocalFileSystem(), str(places.dvc_cache))]


def needed(
    places: Places, runs: dict[str, KnownRun], versions: list[Registered], going: Iterable[Path], found: list[Depot]
) -> Needed:
    """What the runs that stay, registered versions, other branches and tags, and open workspaces need.

    going: workspaces that are taken away.
    """
    told = Needed()
    if busy := sorted(run.slug for run in runs.values() if run.at_work):
        told.why = f"{busy[0]} is at work, and may take any of it from an earlier run"
        return told
    entries: list[dict[str, Any]] = []
    for commit in _commits(places, runs):
        entries += _entries(_show(places, commit))
    for version in versions:
        if not version.commit:
            continue
        if not git.has_commit(places.repository, version.commit):
            told.why = (
                f"{version.uri} names the commit {version.commit[:12]}, which is not here: ADO_GIT_REMOTE may have it"
            )
            return told
        entries += _entries(_show(places, version.commit))
    gone = set(going)
    folders = [places.repository, *places.workspaces.glob("*"), *(places.state / "reproduced").glob("*")]
    for path in (folder / LOCK_FILE for folder in folders if folder not in gone):
        if path.is_file():
            try:
                entries += _entries(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, AttributeError, yaml.YAMLError):
                told.why = f"{path} cannot be read, so that nobody knows what it names: mend it, or remove its folder"
                return told
    for entry in entries:
        told.records.add(entry_digest(entry))
        told.hashes |= {str(out["md5"]) for out in entry.get("outs", []) if out.get("md5")}
    for hash_ in sorted(one for one in told.hashes if one.endswith(".dir")):
        content = next((content for depot in found if (content := depot.read(hash_)) is not None), None)
        if content is not None:  # a list that is nowhere has no files that could be told from others
            told.hashes |= {str(file["md5"]) for file in json.loads(content)}
    return told


def cited_runs(keep: Needed, found: list[Depot]) -> set[str]:
    """MLflow runs of stages whose results a run that stays took over: its scores are there."""
    cited = set()
    for depot in found:
        for path, _, _ in depot.files("records"):
            if path.rpartition("/")[2].removesuffix(".json") in keep.records:
                with contextlib.suppress(FileNotFoundError, ValueError, AttributeError):
                    cited.add(str(json.loads(depot.fs.cat_file(path)).get("mlflow_run_id") or ""))
    return cited


def stage_runs(depot: Depot, keep: Needed, before: float) -> Area:
    """DVC's run cache and the records of stages: by these an artifact would be taken again, so they go first."""
    area = Area(f"stage results in the {depot.title}")
    for path, size, when in depot.files("runs"):
        entry = _entry(depot, path)
        outs = {str(out["md5"]) for out in entry.get("outs", []) if out.get("md5")}
        area.sort(depot.item(path, size), _why(keep, bool(outs) and outs <= keep.hashes, when, before))
    for path, size, when in depot.files("records"):
        digest = path.rpartition("/")[2].removesuffix(".json")
        area.sort(depot.item(path, size), _why(keep, digest in keep.records, when, before))
    return area


def objects(depot: Depot, keep: Needed, before: float) -> Area:
    """Files by their hash. A folder's list goes before its files: without it they are nobody's."""
    area = Area(f"artifacts in the {depot.title}")
    found = sorted(depot.files("files/md5"), key=lambda one: not one[0].endswith(".dir"))
    for path, size, when in found:
        *_, head, tail = path.split("/")
        area.sort(depot.item(path, size), _why(keep, head + tail in keep.hashes, when, before))
    return area


def checkpoints(depot: Depot, runs: dict[str, KnownRun], before: float) -> Area:
    """Copies of checkpoints in the store, which only a run that is at work needs."""
    area = Area("checkpoints in the store")
    for path, size, when in depot.files("checkpoints"):
        slug = path.rpartition("/checkpoints/")[2].partition("/")[0]
        run = runs.get(slug)
        why = "at work" if run and run.at_work else "young" if max(when, run.last if run else 0.0) > before else ""
        area.sort(depot.item(path, size), why)
    return area


def _why(keep: Needed, is_needed: bool, when: float, before: float) -> str:
    if keep.why:
        return keep.why
    return "needed by a run that stays" if is_needed else "young" if when > before else ""


def _commits(places: Places, runs: dict[str, KnownRun]) -> set[str]:
    """Of every run that stays, and of all other branches and tags."""
    commits = {commit for run in runs.values() if run.why for commit in (run.here, run.there) if commit}
    for line in git.git(places.repository, "for-each-ref", "--format=%(refname) %(objectname)").splitlines():
        name, _, commit = line.partition(" ")
        is_run = "/runs/" in name and name.rpartition("/runs/")[2] in runs
        if not is_run:
            commits.add(commit)
    return commits | {git.git(places.repository, "rev-parse", "HEAD")}


def _show(places: Places, commit: str) -> str:
    try:
        return git.git(places.repository, "show", f"{commit}:{LOCK_FILE}")
    except UnavailableError:  # it has none
        return ""


def _entries(text: str) -> list[dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return list(((yaml.load(text, Loader=loader) or {}).get("stages") or {}).values())


def _entry(depot: Depot, path: str) -> dict[str, Any]:
    """A run-cache entry; empty where a killed process left it half-written."""
    with contextlib.suppress(yaml.YAMLError, FileNotFoundError, UnicodeDecodeError):
        found = yaml.safe_load(depot.fs.cat_file(path))
        return found if isinstance(found, dict) else {}
    return {}
