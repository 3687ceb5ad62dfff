"""`mlx-tasks clean`: look at everything that runs left, then take away what is old and what nothing needs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from mlx_tasks.locks import held
from mlx_tasks.retention.airflow import airflow_areas, served_copies
from mlx_tasks.retention.objects import checkpoints, cited_runs, depots, needed, objects, stage_runs
from mlx_tasks.retention.plan import Area
from mlx_tasks.retention.registry import connect, mlflow_runs, registered
from mlx_tasks.retention.runs import branches, forget_remote_copy, known_runs, workspaces
from mlx_tasks.retention.tracking import mlflow_area
from mlx_tasks.workspace.git import check_checkout
from mlx_tasks.workspace.paths import Places

Say = Callable[[str], None]


def clean(places: Places, older_than_s: float, remove: bool, say: Say) -> list[Area]:
    """What goes and what stays, by kind; with `remove` it is gone at the end.

    No run is opened on this machine meanwhile. The order is that of need: what could lead to a thing goes before the
    thing, so that a clean that is killed leaves only what the next one finds.

    Raises: DataError where no registry is named; UnavailableError where it or the store does not answer; BusyError.
    """
    check_checkout(places.repository)
    before = time.time() - older_than_s
    with held(places.lock("git"), "clean", what="git", wait_s=60), contextlib.closing(connect()) as rest:
        try:
            say("asking the registry what must stay")
            versions, tracked = registered(rest), mlflow_runs(rest)
            runs = known_runs(places, versions, tracked, before)
            say(f"{len(versions)} registered versions, {len(runs)} runs; looking through the store and the cache")
            folders = workspaces(places, runs, before)
            found = depots(places)
            keep = needed(places, runs, versions, [Path(item.name) for item in folders.goes], found)
            busy = "a run is at work" if any(run.at_work for run in runs.values()) else ""
            areas = [
                folders,
                *branches(places, runs),
                *(stage_runs(depot, keep, before) for depot in found),
                *(objects(depot, keep, before) for depot in found),
                checkpoints(found[0], runs, before),
                mlflow_area(rest, tracked, versions, runs, before, cited_runs(keep, found), keep.why),
                *airflow_areas(places, before, busy),
                served_copies(places, before),
            ]
            if remove:
                _remove(areas, say)
        finally:
            forget_remote_copy(places)
    return areas


def _remove(areas: list[Area], say: Say) -> None:
    for area in areas:
        told = time.monotonic()
        for done, item in enumerate(area.goes, start=1):
            item.remove()
            if time.monotonic() - told > 5 and done < len(area.goes):
                told = time.monotonic()
                say(f"{area.title}: {done} of {len(area.goes)}")
        if area.goes:
            say(f"{area.title}: {len(area.goes)} gone")
