"""What a run waits for, in words, and what would help: asked when nothing has changed for a while."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlx_tasks.locks import holder_of, locks_folder
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.health import silent_parts

Tasks = list[dict[str, Any]]


def hindrances(api: AirflowApi, dag_id: str) -> list[str]:
    """Why a run of a DAG would not get on, before it is started: each with what would help."""
    told = _paused(api, dag_id) + _silent(api)
    tasks = api.dag_tasks(dag_id)
    for name in _unique(task["pool"] for task in tasks):
        told += slotless(name, api.pool(name), api.url)
    return told + workerless(_unique(task["queue"] for task in tasks), api.edge_workers())


def reasons(api: AirflowApi, dag_id: str, run: dict[str, Any], tasks: Tasks, progress: Path) -> list[str]:
    """What a run that stands still waits for; empty where nothing is known to be in its way.

    progress: the workspace's `.run/progress`.
    """
    told = _silent(api) + _paused(api, dag_id)
    if run["state"] == "queued":
        return told + _behind(api, dag_id, run)
    by_state: dict[str, Tasks] = {}
    for task in tasks:
        by_state.setdefault(task["state"] or "none", []).append(task)
    if retried := by_state.get("up_for_retry"):
        delays = {task["task_id"]: _seconds(task["retry_delay"]) for task in api.dag_tasks(dag_id)}
        told += [_next_try(task, delays.get(task["task_id"], 0.0)) for task in retried]
    for task in by_state.get("deferred", []):
        told.append(f"{_name(task)} is deferred: it goes on when its trigger fires (Airflow shows which)")
    if ready := [*by_state.get("scheduled", []), *by_state.get("queued", [])]:
        told += _no_room(api, ready)
    for task in by_state.get("running", []):
        told += _accelerator(task, progress)
    return told


def slotless(name: str, pool: dict[str, Any] | None, url: str) -> list[str]:
    """A pool that lets no task start, ever."""
    if pool is None:
        return [f"there is no pool {name!r}, so that its tasks never start: make it at {url}/pools, or mend ADO_POOL"]
    if pool["slots"] == 0:
        return [f"the pool {name!r} has 0 slots, so that its tasks never start: give it 1 at {url}/pools"]
    return []


def workerless(queues: Iterable[str], workers: list[dict[str, Any]] | None) -> list[str]:
    """Queues that no living worker takes, where workers elsewhere run the tasks."""
    if workers is None:
        return []
    alive = [one for one in workers if one["state"] not in ("offline", "unknown", "offline maintenance")]
    if any(not one["queues"] for one in alive):
        return []  # it takes every queue
    taken = {queue for one in alive for queue in one["queues"]}
    return [
        f"no worker takes the queue {queue!r}, so that its tasks wait: start one, `mlx-tasks worker` with "
        f"ADO_QUEUES={queue}"
        for queue in queues
        if queue not in taken
    ]


def _paused(api: AirflowApi, dag_id: str) -> list[str]:
    if not api.dag(dag_id)["is_paused"]:
        return []
    return [f"{dag_id} is paused in Airflow, so that no task starts: unpause it at {api.url}/dags/{dag_id}"]


def _silent(api: AirflowApi) -> list[str]:
    """Parts without a heartbeat; the watcher starts dead ones again, and deaf ones after some minutes."""
    ill = silent_parts(api.health())
    return [
        f"Airflow's {name} is not well: {why}; it is started again if it does not come back"
        for name, why in ill.items()
    ]


def _behind(api: AirflowApi, dag_id: str, run: dict[str, Any]) -> list[str]:
    others = [one["dag_run_id"] for one in api.runs(dag_id, states=("running",))]
    most = api.dag(dag_id).get("max_active_runs")
    if most and len(others) >= most:
        return [
            f"{run['dag_run_id']} is queued behind {', '.join(others)}: {most} runs at once are allowed "
            f"(max_active_runs); it starts when one ends, or is ended at {api.url}/dags/{dag_id}/runs"
        ]
    return [f"{run['dag_run_id']} is queued: the scheduler has not taken it yet"]


def _next_try(task: dict[str, Any], delay_s: float) -> str:
    tries = f"try {task['try_number'] + 1} of {task['max_tries'] + 1}"
    if not task.get("end_date"):
        return f"{_name(task)} has failed and is tried again ({tries})"
    due = datetime.fromisoformat(task["end_date"].replace("Z", "+00:00")) + timedelta(seconds=delay_s)
    return (
        f"{_name(task)} has failed and is tried again at {due.astimezone(UTC):%H:%M:%S} UTC ({tries}); its log says why"
    )


def _no_room(api: AirflowApi, ready: Tasks) -> list[str]:
    """Tasks that may start and do not: their pools and their queues."""
    told = []
    for name in _unique(task["pool"] for task in ready):
        waiting = ", ".join(_unique(_name(task) for task in ready if task["pool"] == name))
        pool = api.pool(name)
        if stuck := slotless(name, pool, api.url):
            told += stuck
        elif pool is not None and pool["open_slots"] == 0:
            told.append(
                f"{waiting} waits for a slot of the pool {name!r}: {pool['occupied_slots']} of {pool['slots']} are "
                f"taken (by another run? see {api.url}/pools)"
            )
    told += workerless(_unique(t["queue"] for t in ready if t["queue"]), api.edge_workers())
    return told or [f"{', '.join(_unique(map(_name, ready)))} is about to start: Airflow's executor is busy"]


def _accelerator(task: dict[str, Any], progress: Path) -> list[str]:
    """A stage that waits for the accelerator, which another workspace or a person's own training has."""
    told = []
    with contextlib.suppress(OSError):
        for path in locks_folder().glob("*.lock"):
            if _is_held(path) and str(progress.parent.parent) not in holder_of(path) and _waits(task, progress):
                told.append(f"{_name(task)} waits for the accelerator ({path.stem}): held by {holder_of(path)}")
    return told


def _waits(task: dict[str, Any], progress: Path) -> bool:
    """Whether a stage's last word is that it waits, or it has not said a word yet."""
    words = []
    for path in progress.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_text(encoding="utf-8"))
            words.append((record["updated"], str(record.get("text", ""))))
    return not words or max(words)[1].startswith("waiting for")


def _is_held(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _name(task: dict[str, Any]) -> str:
    index = task.get("map_index", -1)
    return task["task_id"] if index < 0 else f"{task['task_id']}[{index}]"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _seconds(delay: dict[str, Any] | None) -> float:
    """Airflow's JSON of a time span."""
    told = delay or {}
    return 86400.0 * told.get("days", 0) + told.get("seconds", 0) + told.get("microseconds", 0) / 1e6
