"""Bring a registered version's run back on a machine that has nothing of it, and say whether it is the same.

Fetched: code and params from the run's commit, every artifact by hash from the store. Recomputed: the same code and
params run again from the data on, without the cache, and the hashes and scores compared with those kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.files import read_json
from mlx_tasks.hosts.places import HOSTS_VARIABLE
from mlx_tasks.locks import held
from mlx_tasks.workspace import git, outs
from mlx_tasks.workspace.again import fetch_commit
from mlx_tasks.workspace.cache_check import mend
from mlx_tasks.workspace.opening import configure_dvc
from mlx_tasks.workspace.paths import Places

OF_THIS_MACHINE = ("latency_ms", "images_per_second")
REPORT = "work/report"
LAST = "register"
"""The stage whose bundle is the version."""


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
        uri: the version's.
        commit: the run's, at its end.
        folder: the workspace that holds it all again.
        outs: {out: whether its hash is the one kept}; empty where all was fetched by those hashes.
        bundle: whether the bundle's digest is the version's.
        scores: {metric: (kept, now, whether now lies in the kept interval)}; empty where all was fetched.
    """

    uri: str
    commit: str
    folder: Path
    outs: dict[str, bool]
    bundle: bool
    scores: dict[str, tuple[float, float, bool]]

    @property
    def same(self) -> bool:
        """Whether the model is the version's: the same bytes, or scores that its intervals hold."""
        return self.bundle or (bool(self.scores) and all(inside for _, _, inside in self.scores.values()))


def reproduce(
    places: Places, model: str, recompute: bool = False, folder: Path | None = None, say: Callable[[str], None] = print
) -> Reproduction:
    """Bring back the version `model` (NAME/VERSION or NAME@ALIAS) in `folder` (default: STATE/reproduced/...).

    Raises: DataError where the version names no commit that can be had, or `folder` is not empty; UnavailableError
        where the store lacks what the run made, or a stage fails when it is computed again.
    """
    from mlx_tasks.models.bundle import bundle_digest
    from mlx_tasks.registry.mlflow_registry import DIGEST_TAG, SCORES_TAG, Registry
    from mlx_tasks.tracking.rest import URI_VARIABLE, tracking_uri

    uri = tracking_uri()
    if uri is None:
        raise DataError(f"{URI_VARIABLE} must name the registry that knows {model}")
    version = Registry(uri).resolve(model)
    commit = _end_of_run(places, version)
    target = folder or places.state / "reproduced" / f"{version.name}-{version.version}"
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is not empty: remove it, or name another with --out")
    with held(places.lock("git"), f"reproduce {model}", what="git"):
        git.add_worktree(places.repository, target, commit)
    configure_dvc(places, target)
    say(f"{version.uri}: commit {commit[:12]} in {target}")
    kept = {name: digest for name, digest in outs.locked_outs(target).items() if name != REPORT}
    if recompute:
        _recompute(target)
    else:
        _fetch(target, say)
    now = outs.locked_outs(target)
    scores = _scores(json.loads(version.tags.get(SCORES_TAG, "{}")), target) if recompute else {}
    same_outs = {name: now.get(name) == digest for name, digest in kept.items()} if recompute else {}
    made = target / "work" / "registered" / "bundle"
    bundle = made.is_dir() and bundle_digest(made) == version.tags.get(DIGEST_TAG)
    return Reproduction(version.uri, commit, target, same_outs, bundle, scores)


def _end_of_run(places: Places, version: Any) -> str:
    """The run's commit at its end: its branch's, here or as a clone holds it, if that goes on from the version's."""
    commit = fetch_commit(places, version)
    branch = f"runs/{version.tags.get('mlx_tasks.run', '')}"
    for place in ("refs/heads", f"refs/remotes/{places.git_remote}"):
        with contextlib.suppress(UnavailableError):
            tip = git.git(places.repository, "rev-parse", "--verify", f"{place}/{branch}")
            git.git(places.repository, "merge-base", "--is-ancestor", commit, tip)
            commit = tip
    return commit


def _fetch(workspace: Path, say: Callable[[str], None]) -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with contextlib.closing(Repo(str(workspace))) as repo:
        kept = outs.locked_outs(workspace)
        mend(repo, kept)
        say(f"fetching {len(kept)} outs by hash")
        try:
            repo.pull(force=True)
        except DvcException as error:
            raise UnavailableError(f"the store lacks a part of it: {error}; try --recompute") from error
        if missing := [name for name in kept if not (workspace / name).exists()]:
            raise UnavailableError(f"the store gave nothing for {', '.join(missing)}; try --recompute")


def _recompute(workspace: Path) -> None:
    """All stages again, by this environment's interpreter and the commit's own code, with nothing from a cache."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    own = {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(workspace),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        HOSTS_VARIABLE: "none",  # the run's machines may not be at hand, and where is not what
    }
    before = {name: os.environ.get(name) for name in (*own, "MLFLOW_TRACKING_URI")}
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # nothing of this is registered or tracked again
    os.environ.update(own)
    here = Path.cwd()
    os.chdir(workspace)
    try:
        with contextlib.closing(Repo(str(workspace))) as repo:
            repo.scm_context.quiet = True  # nothing of this is to be committed
            repo.reproduce(targets=[LAST], force=True)  # pyright: ignore[reportCallIssue]  (DVC makes a function its method)
    except DvcException as error:
        raise UnavailableError(f"a stage failed: {error}; see its lines above") from error
    finally:
        os.chdir(here)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _scores(kept: dict[str, Any], workspace: Path) -> dict[str, tuple[float, float, bool]]:
    """The winner's scores then and now, those with an interval; latency is this machine's affair."""
    told = read_json(workspace / "work" / "scores" / "scores.json")
    winner = next(row for row in told["rows"] if row["candidate"] == told["winner"]["candidate"])["metrics"]
    found = {}
    for name, then in kept.items():
        if name in winner and name not in OF_THIS_MACHINE and None not in (then.get("low"), then.get("high")):
            value = float(winner[name]["value"])
            found[name] = (float(then["value"]), value, then["low"] <= value <= then["high"])
    return found
