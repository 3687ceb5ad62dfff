"""Close a run: what it made is committed on its branch, its MLflow run ends. And remove workspaces no one needs."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, cast

from mlx_tasks.errors import BusyError
from mlx_tasks.files import read_json
from mlx_tasks.locks import held
from mlx_tasks.workspace import outs
from mlx_tasks.workspace.mlflow_parent import end_parent
from mlx_tasks.workspace.node import commit_run
from mlx_tasks.workspace.opening import Run, ensure_workspace, remove_workspace
from mlx_tasks.workspace.paths import Places

logger = logging.getLogger(__name__)


def close_run(places: Places, run: Run, locks: dict[str, outs.LockEntry], succeeded: bool) -> dict[str, Any]:
    """Commit the params and every lock entry, also of a run that failed half-way; end its MLflow run.

    Returns: branch, commit, succeeded.
    """
    workspace = ensure_workspace(places, run)
    with held(places.lock(run["slug"]), "close", what=f"the workspace {run['slug']}"):
        outs.merge_lock(workspace, locks)
        how = "Artifacts" if succeeded else "Artifacts before the failure"
        commit = commit_run(places, run, workspace, f"{how} of run {run['run_id']}")
    end_parent(run["mlflow_parent"], succeeded)
    return {"branch": run["branch"], "commit": commit, "succeeded": succeeded}


def list_workspaces(places: Places) -> list[Run]:
    """The runs that have a workspace on this machine, newest first."""
    markers = sorted(places.workspaces.glob("*/.run/run.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    return [run for marker in markers if (run := _read(marker))]


def _read(marker: Path) -> Run | None:
    """What a workspace says of its run; None where that is no marker of ours, or damaged."""
    with contextlib.suppress(OSError, ValueError):
        run: Any = read_json(marker)
        if isinstance(run, dict) and run.get("slug") == marker.parent.parent.name:
            return cast("Run", run)
    logger.warning("workspace=%s marker=damaged: passed over", marker.parent.parent)
    return None


def prune_workspaces(places: Places, keep: int) -> list[Path]:
    """Remove all workspaces but the newest `keep`, and but those at work; their branches and artifacts stay.

    Returns: the folders removed.
    """
    removed = []
    for run in list_workspaces(places)[keep:]:
        path = places.workspaces / run["slug"]
        try:
            with held(places.lock(run["slug"]), "prune", what=f"the workspace {run['slug']}", wait_s=0):
                remove_workspace(places, path)
        except BusyError:
            continue
        removed.append(path)
    return removed
