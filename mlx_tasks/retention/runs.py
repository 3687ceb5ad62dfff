"""The runs that left anything here or on the git remote: when each was last at work, and why it stays if it does."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_tasks.errors import BusyError, UnavailableError
from mlx_tasks.locks import held
from mlx_tasks.retention.plan import Area, Item
from mlx_tasks.retention.registry import Registered
from mlx_tasks.workspace import git
from mlx_tasks.workspace.paths import Places, run_slug

REMOTE_COPY = "refs/mlx-tasks/clean"
"""Where the remote's branches of runs are looked at; gone when `clean` ends."""
DEAD_AFTER_S = 30 * 86400.0
"""A run that MLflow calls running and that nobody has touched for this long is at work no more."""


OURS = re.compile(r"-[0-9a-f]{8}$")
"""How the name of every run of the chain ends (workspace/paths.py)."""
FOREIGN = "not of the chain"


@dataclass
class KnownRun:
    """One run.

    Attributes:
        slug: its name for files and branches.
        here, there: its branch's commit in the repository and on the remote, or None.
        last: when it was last at work (s since 1970).
        why: why it stays; empty where it goes.
        at_work: whether it still computes.
    """

    slug: str
    here: str | None = None
    there: str | None = None
    last: float = 0.0
    why: str = ""
    at_work: bool = False


def known_runs(
    places: Places, versions: list[Registered], tracked: list[dict[str, Any]], before: float
) -> dict[str, KnownRun]:
    """{slug: run} of all that have a branch or a workspace.  before: what is younger stays (s since 1970)."""
    runs: dict[str, KnownRun] = {}
    if places.git_remote:
        git.exchange(
            places.repository, "fetch", places.git_remote, f"+refs/heads/runs/*:{REMOTE_COPY}/runs/*", "--prune"
        )
    for place, key in (("refs/heads", "here"), (REMOTE_COPY, "there")):
        for slug, commit, when in _branches(places, place):
            run = runs.setdefault(slug, KnownRun(slug))
            setattr(run, key, commit)
            run.last = max(run.last, when)
    for folder in _folders(places.workspaces):
        run = runs.setdefault(folder.name, KnownRun(folder.name))
        run.last = max(run.last, *_times(folder))
    running = {run_slug(one["name"]): one for one in tracked if one["name"] and one["status"] == "RUNNING"}
    names = {one.slug: one.uri for one in reversed(versions)}
    used = _checked_out(places)
    for run in runs.values():
        fresh = max(run.last, running[run.slug]["last"]) if run.slug in running else 0.0
        run.at_work = _is_held(places, run.slug) or fresh > min(before, time.time() - DEAD_AFTER_S)
        if run.at_work:
            run.why = "at work"
        elif not OURS.search(run.slug):
            run.why = FOREIGN
        elif run.slug in names:
            run.why = f"registered ({names[run.slug]})"
        elif run.last > before:
            run.why = "young"
        elif run.slug in used:
            run.why = "checked out"
    return runs


def workspaces(places: Places, runs: dict[str, KnownRun], before: float) -> Area:
    """Folders of runs: copies of what the branch and the store have, so that a registered run's go too."""
    area = Area("workspaces")
    for folder in _folders(places.workspaces):
        run = runs[folder.name]
        foreign = FOREIGN if run.why == FOREIGN else ""
        why = "at work" if run.at_work else "young" if run.last > before else foreign
        area.sort(Item(str(folder), _size(folder), _Worktree(places, folder, run.slug)), why)
    for folder in _folders(places.state / "reproduced"):
        why = "young" if max(_times(folder)) > before else ""
        area.sort(Item(str(folder), _size(folder), _Worktree(places, folder, folder.name)), why)
    return area


def branches(places: Places, runs: dict[str, KnownRun]) -> list[Area]:
    """Branches runs/*, on the remote and here."""
    there, here = Area(f"branches on {git.without_passwords(places.git_remote or '')}"), Area("branches here")
    for run in runs.values():
        name = f"refs/heads/runs/{run.slug}"
        if run.there:
            there.sort(Item(name, 0, _RemoteBranch(places, name, run.there)), run.why)
        if run.here:
            here.sort(Item(name, 0, _LocalBranch(places, name, run.here)), run.why)
    return [*([there] if places.git_remote else []), here]


class _Worktree:
    def __init__(self, places: Places, folder: Path, slug: str) -> None:
        self._places, self._folder, self._slug = places, folder, slug

    def __call__(self) -> None:
        with contextlib.suppress(BusyError), held(self._places.lock(self._slug), "clean", what="it", wait_s=0):
            git.remove_worktree(self._places.repository, self._folder)


class _LocalBranch:
    def __init__(self, places: Places, name: str, commit: str) -> None:
        self._places, self._name, self._commit = places, name, commit

    def __call__(self) -> None:
        """One that moved meanwhile stays."""
        with contextlib.suppress(UnavailableError):
            git.git(self._places.repository, "update-ref", "-d", self._name, self._commit)


class _RemoteBranch(_LocalBranch):
    def __call__(self) -> None:
        remote = self._places.git_remote or ""
        with contextlib.suppress(UnavailableError):
            git.exchange(
                self._places.repository,
                "push",
                remote,
                f":{self._name}",
                f"--force-with-lease={self._name}:{self._commit}",
            )


def forget_remote_copy(places: Places) -> None:
    """Remove the refs by which the remote's branches were looked at."""
    for name in git.git(places.repository, "for-each-ref", "--format=%(refname)", REMOTE_COPY).split():
        git.git(places.repository, "update-ref", "-d", name)


def _branches(places: Places, place: str) -> list[tuple[str, str, float]]:
    form = "--format=%(refname) %(objectname) %(committerdate:unix)"
    lines = git.git(places.repository, "for-each-ref", form, f"{place}/runs/").splitlines()
    parts = [line.split(" ") for line in lines]
    return [(name.rpartition("/runs/")[2], commit, float(when)) for name, commit, when in parts]


def _checked_out(places: Places) -> set[str]:
    told = git.git(places.repository, "worktree", "list", "--porcelain").splitlines()
    return {line.rpartition("/runs/")[2] for line in told if line.startswith("branch refs/heads/runs/")}


def _is_held(places: Places, slug: str) -> bool:
    path = places.lock(slug)
    if not path.exists():
        return False
    try:
        with held(path, "clean", what="it", wait_s=0):
            return False
    except BusyError:
        return True


def _folders(place: Path) -> list[Path]:
    """The folders in a folder; neither files, such as a Finder leaves, nor links to what is elsewhere."""
    return sorted(path for path in place.glob("*") if path.is_dir() and not path.is_symlink())


def _times(folder: Path) -> list[float]:
    marks = [folder, folder / ".run" / "run.json", *(folder / ".run" / "stages").glob("*")]
    return [path.stat().st_mtime for path in marks if path.exists()] or [0.0]


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                told = os.lstat(os.path.join(root, name))
                total += told.st_size if told.st_nlink == 1 else 0  # a hard link to the cache frees nothing
    return total
