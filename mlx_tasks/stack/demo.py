"""`make demo`: the stack up, one run of the chain triggered and followed, and the word on where to look."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlx_tasks.dag_settings import ACCELERATOR
from mlx_tasks.errors import DataError, ExitCode, StageError, UnavailableError
from mlx_tasks.files import read_json
from mlx_tasks.stack import supervisor
from mlx_tasks.stack.api import TRIES, AirflowApi
from mlx_tasks.stack.follow import follow
from mlx_tasks.stack.layout import Layout
from mlx_tasks.stack.processes import noted_problem
from mlx_tasks.stack.secrets import USER, load_secrets
from mlx_tasks.stack.waiting import hindrances
from mlx_tasks.workspace.paths import workspace_path

DAG_ID = "optimize_diffusion"
NODES = ("open_run", "validate", "train", "distill", "search", "tune", "evaluate", "register")


def say(text: str) -> None:
    """One line of the demo's own."""
    print(f"demo: {text}", flush=True)


def demo(root: Path, conf: dict[str, Any], *, plain: bool | None = None) -> int:
    """Run the chain once under a stack of its own; the stack stays up. Returns an exit code.

    Ctrl-C ends the run and the stack, so that nothing is left behind; state stays, and a later demo starts from it.
    """
    layout = Layout.of(root)
    _check_repository(root)
    with supervisor.exclusive(layout, "a demo"), supervisor.terminable():
        try:
            return _demo(layout, conf, plain)
        except KeyboardInterrupt:
            say("interrupted: ending the run and the stack (this takes a few seconds)")
            _end_run(layout)
            supervisor.take_down(layout, say)
            say("all ended; what was made is kept in " + str(layout.state))
            return int(ExitCode.INTERRUPTED)


def up(root: Path) -> int:
    """Start the stack, or what of it is dead, and leave it up."""
    layout = Layout.of(root)
    with supervisor.terminable():
        try:
            bring_up(layout, say)
        except KeyboardInterrupt:
            supervisor.take_down(layout, say)
            return int(ExitCode.INTERRUPTED)
    _where(layout)
    return 0


def down(root: Path) -> int:
    """End the stack's processes, also those of one that is only half up; state is kept."""
    layout = Layout.of(root)
    ended = supervisor.take_down(layout, say)
    say("the stack is down; its state is kept in " + str(layout.state) if ended else "no stack was up")
    return 0


def follow_latest(root: Path, run_id: str | None, *, plain: bool | None = None) -> int:
    """Follow a run, by default the newest one, of a stack that is up."""
    layout = Layout.of(root)
    run_id = run_id or _latest(layout)
    if problem := noted_problem(layout):
        raise UnavailableError(f"the stack was given up: {problem}")
    if not supervisor.running(layout):
        raise DataError(f"no stack is up: `make up` starts it, and {run_id} goes on where it was")
    try:
        state = follow(AirflowApi(layout), DAG_ID, run_id, _progress(layout, run_id), order=NODES, plain=plain)
    except KeyboardInterrupt:
        say(f"{run_id} goes on: `make follow` shows it again, `make down` ends the stack")
        return int(ExitCode.INTERRUPTED)
    _summary(layout, run_id, state)
    return 0 if state == "success" else 1


def bring_up(layout: Layout, say: supervisor.Say, tries: int = TRIES) -> AirflowApi:
    """The stack up and well, with its pool, once Airflow knows the chain; its API, which asks so many times."""
    with supervisor.turn(layout, "a start of the stack", say):
        supervisor.start(layout, say)
    api = AirflowApi(layout, tries)
    api.ensure_pool(ACCELERATOR["pool"], 1, "The accelerator: one stage at a time")
    api.wait_for_dag(DAG_ID)
    return api


def _demo(layout: Layout, conf: dict[str, Any], plain: bool | None) -> int:
    api = bring_up(layout, say)
    clear_the_way(api, say)
    run_id = time.strftime("demo__%Y-%m-%dT%H-%M-%S")
    supervisor.note_run(layout, run_id)
    api.trigger(DAG_ID, run_id, conf)
    say(f"run {run_id} is under way; Ctrl-C ends it and the stack")
    say(f"watch it in Airflow: {_run_url(layout, run_id)}  (user {USER}, password {_password(layout)})")
    state = follow(api, DAG_ID, run_id, _progress(layout, run_id), order=NODES, plain=plain)
    if state != "success":
        _tell_failure(api, run_id)
    _summary(layout, run_id, state)
    return 0 if state == "success" else 1


def clear_the_way(api: AirflowApi, say: supervisor.Say) -> None:
    """Unpause the chain.  Raises: DataError where something else would let a run wait without end."""
    if api.dag(DAG_ID)["is_paused"]:
        api.pause(DAG_ID, False)
        say(f"{DAG_ID} was paused in Airflow: it is unpaused")
    if found := hindrances(api, DAG_ID):
        raise DataError("a run would wait without end: " + "; ".join(found))
    for run in api.runs(DAG_ID, states=("running", "queued")):
        say(f"{run['dag_run_id']} of an earlier start is {run['state']} and goes on beside this run")


def _end_run(layout: Layout) -> None:
    run_id = supervisor.noted_run(layout)
    if run_id:
        with contextlib.suppress(StageError):
            AirflowApi(layout, tries=2).stop_run(DAG_ID, run_id)


def _tell_failure(api: AirflowApi, run_id: str) -> None:
    for task in api.tasks(DAG_ID, run_id):
        if task["state"] == "failed":
            log = api.task_log(DAG_ID, run_id, task["task_id"], task["try_number"], task["map_index"])
            lines = [line for line in log.splitlines() if line.strip()][-25:]
            print(f"\n{task['task_id']} failed; the end of its log:\n  " + "\n  ".join(lines), flush=True)


def _summary(layout: Layout, run_id: str, state: str) -> None:
    work = workspace_path(layout.state, run_id) / "work"
    print()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        _print_scores(read_json(work / "report" / "report.json"))
    say(f"the run ended: {state}")
    _where(layout, run_id)
    if (work / "report" / "report.html").exists():
        print(f"  report   {work / 'report' / 'report.html'}")
    if (work / "registered" / "bundle").exists():
        print(f"  model    {work / 'registered' / 'bundle'}  (a diffusers folder)")
    print("  the stack stays up: `make down` ends it", flush=True)


def _print_scores(report: dict[str, Any]) -> None:
    for line in report["sentences"]:
        print(f"  {line}")


def _where(layout: Layout, run_id: str | None = None) -> None:
    airflow = _run_url(layout, run_id) if run_id else layout.airflow_url
    print(f"  Airflow  {airflow}  (user {USER}, password {_password(layout)})")
    print(f"  MLflow   {layout.mlflow_url}")


def _password(layout: Layout) -> str:
    return load_secrets(layout.state)["password"]


def _run_url(layout: Layout, run_id: str) -> str:
    return f"{layout.airflow_url}/dags/{DAG_ID}/runs/{quote(run_id, safe='')}"


def _progress(layout: Layout, run_id: str) -> Path:
    return workspace_path(layout.state, run_id) / ".run" / "progress"


def _latest(layout: Layout) -> str:
    run_id = supervisor.noted_run(layout)
    if run_id is None:
        raise DataError("no run was started by `make demo` yet: name one, `mlx-tasks follow RUN_ID`")
    return run_id


def _check_repository(root: Path) -> None:
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise DataError("git is not installed, and every run is kept as a commit: `make setup` says how") from None
    if done.returncode:
        raise DataError(f"{root} is no git checkout with a commit, and every run is kept as one: clone the repository")
