"""A real embedded stack: its parts are killed, a pool is empty, a DAG paused; nothing is left waiting in silence."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from ports import free_port

from mlx_tasks.errors import DataError, InterruptedStageError
from mlx_tasks.stack import demo, news, supervisor
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.layout import Layout, is_free
from mlx_tasks.stack.processes import recorded
from mlx_tasks.stack.waiting import hindrances, reasons

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DAGS = """
import os, pathlib, time
from datetime import timedelta
from airflow.sdk import dag, task

STATE = pathlib.Path(os.environ["ADO_STATE"])


@dag(schedule=None, default_args={"retries": 3, "retry_delay": timedelta(seconds=1)})
def small():
    @task
    def first():
        (STATE / "begun").touch()
        while not (STATE / "go").exists():
            time.sleep(0.1)

    @task
    def second():
        pass

    first() >> second()


@dag(schedule=None, max_active_runs=1)
def many():
    @task(pool="empty")
    def one(number):
        pass

    one.expand(number=list(range(120)))


@dag(schedule=None)
def falls():
    @task(retries=2, retry_delay=timedelta(hours=1))
    def fall():
        raise ValueError("no")

    fall()


small()
many()
falls()
"""
FOLLOW = """
import sys
from pathlib import Path
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.follow import follow
from mlx_tasks.stack.layout import Layout

api = AirflowApi(Layout.of(Path(sys.argv[1])), tries=1)
print(follow(api, "small", sys.argv[2], Path(sys.argv[1]) / "none", plain=True), flush=True)
"""


def wait_for(what, look, seconds=180.0):
    """What `look` finds, once it does."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.2)
    return found


def lives(process):
    """Whether it runs, and is no zombie that its parent has yet to bury."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def family(layout):
    """Every living process of the stack's sessions."""
    return {pid: process for entry in recorded(layout) for pid, process in entry.family().items()}


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """(layout, api) of a stack over three small DAGs."""
    folder = tmp_path_factory.mktemp("alive")
    root = folder / "checkout"
    (root / "dags").mkdir(parents=True)
    (root / "plugins").mkdir()
    (root / "dags" / "three.py").write_text(DAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADO_STATE", str(folder / "state"))
        for name in ("AIRFLOW", "MLFLOW", "SERVER"):
            patch.setenv(f"ADO_{name}_PORT", str(free_port()))
        layout = Layout.of(root)
        try:
            supervisor.start(layout, print)
            api = AirflowApi(layout)
            api.ensure_pool("empty", 0, "nothing starts here")
            for dag_id in ("small", "many", "falls"):
                api.wait_for_dag(dag_id)
            yield layout, api
        finally:
            supervisor.take_down(layout, print)


def test_killed_parts_come_back_the_run_ends_green_and_each_death_is_told_once(up, tmp_path):
    layout, api = up
    api.trigger("small", "under-way", {})
    wait_for("begin of the task", (layout.state / "begun").exists)
    before = {entry.name: entry for entry in recorded(layout)}
    command = [sys.executable, "-c", FOLLOW, str(layout.root), "under-way"]
    with (tmp_path / "output").open("wb") as output:
        follower = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    told = (tmp_path / "output").read_text
    try:
        wait_for("first state", lambda: "first: running" in told())
        workers = before["scheduler"].family()
        assert len(workers) > 4, "the scheduler forks its executor's workers"
        for name in ("scheduler", "api-server"):
            os.kill(before[name].pid, signal.SIGKILL)
        wait_for("end of what the killed scheduler left", lambda: not any(map(lives, workers.values())))
        wait_for(
            "new parts", lambda: {"scheduler", "api-server"} <= {n for n, p in supervisor.running(layout).items()
                                                                  if p.pid != before[n].pid}
        )  # fmt: skip
        (layout.state / "go").touch()
        wait_for("end of the run", lambda: follower.poll() is not None, 240)
    finally:
        follower.kill()
        follower.wait()
    lines = told().splitlines()
    assert lines[-1] == "success", told()
    for name in ("scheduler", "api-server"):
        assert len([line for line in lines if f"{name} has died" in line and "started again" in line]) == 1, told()
    assert supervisor.watched(layout)


def test_every_page_of_a_long_list_is_read(up, monkeypatch):
    _, api = up
    api.trigger("falls", "fallen", {})
    api.trigger("many", "first", {})
    tasks = wait_for("tasks", lambda: (t := api.tasks("many", "first")) and t[0]["state"] == "scheduled" and t)
    assert sorted(task["map_index"] for task in tasks) == list(range(120))
    for number in range(4):
        api.trigger("many", f"later-{number}", {})
    monkeypatch.setattr("mlx_tasks.stack.api.PAGE", 2)
    assert {run["dag_run_id"] for run in api.runs("many")} == {"first", *(f"later-{number}" for number in range(4))}
    assert len(api.runs("many", newest=3)) == 3 and len(api.tasks("falls", "fallen")) == 1


def test_what_a_run_waits_for_is_said_with_what_would_help(up, tmp_path):
    _, api = up

    def told(dag_id, run_id):
        return " ".join(reasons(api, dag_id, api.run(dag_id, run_id), api.tasks(dag_id, run_id), tmp_path))

    assert "the pool 'empty' has 0 slots" in told("many", "first") and f"{api.url}/pools" in told("many", "first")
    assert any("0 slots" in line for line in hindrances(api, "many")) and hindrances(api, "small") == []
    assert "queued behind first: 1 runs at once" in told("many", "later-0")
    api.pause("many", True)
    try:
        assert "many is paused in Airflow" in told("many", "first")
    finally:
        api.pause("many", False)
    [task] = wait_for("retry", lambda: [t for t in api.tasks("falls", "fallen") if t["state"] == "up_for_retry"])
    due = (
        time.strftime("%H:", time.gmtime(time.time() + 3600 - 120)),
        time.strftime("%H:", time.gmtime(time.time() + 3600)),
    )
    words = told("falls", "fallen")
    assert "fall has failed and is tried again at" in words and any(f"again at {hour}" in words for hour in due)
    assert f"try {task['try_number'] + 1} of 3" in words


def test_a_paused_chain_is_unpaused_and_one_that_could_not_get_on_is_refused_before_it_starts(up, monkeypatch):
    _, api = up
    api.pause("small", True)
    monkeypatch.setattr(demo, "DAG_ID", "small")
    lines = []
    demo.clear_the_way(api, lines.append)
    assert lines == ["small was paused in Airflow: it is unpaused"] and not api.dag("small")["is_paused"]
    monkeypatch.setattr(demo, "DAG_ID", "many")
    with pytest.raises(DataError, match=r"wait without end: the pool 'empty' has 0 slots.*/pools"):
        demo.clear_the_way(api, lines.append)


def test_a_still_run_is_told_once_and_the_end_of_the_stack_ends_who_follows(up, tmp_path):
    layout, api = up
    heard = news.News(api, "many", tmp_path, still_s=0.0)
    run, tasks = api.run("many", "first"), api.tasks("many", "first")
    assert "0 slots" in " ".join(heard.of_the_run(run, tasks, {}))
    assert heard.of_the_run(run, tasks, {}) == []
    kept = layout.record.read_bytes()
    layout.record.unlink()
    with pytest.raises(InterruptedStageError, match="make up"):
        heard.of_the_stack()
    layout.record.write_bytes(kept)


def test_a_dead_watcher_is_replaced_and_up_keeps_the_parts_that_live(up, tmp_path):
    layout, api = up
    pids = {name: process.pid for name, process in supervisor.running(layout).items()}
    [watcher] = [entry for entry in recorded(layout) if entry.name == "watcher"]
    os.kill(watcher.pid, signal.SIGKILL)
    wait_for("end of the watcher", lambda: not supervisor.watched(layout))
    heard = news.News(api, "many", tmp_path)
    assert any("watches the stack" in line for line in heard.of_the_stack()) and supervisor.watched(layout)
    lines = []
    with supervisor.exclusive(layout, "a demo"), supervisor.turn(layout, "up", lines.append, wait_s=0):
        supervisor.start(layout, lines.append)  # a demo that is at work stands in nobody's way
    assert lines == ["the stack is up already"]
    assert {name: process.pid for name, process in supervisor.running(layout).items()} == pids


def test_up_starts_what_is_dead_of_a_stack_that_is_half_up_and_keeps_the_rest(up):
    layout, api = up
    before = {entry.name: entry.pid for entry in recorded(layout)}
    for name in ("watcher", "mlflow"):
        os.kill(before[name], signal.SIGKILL)
    wait_for("their ends", lambda: not supervisor.watched(layout) and "mlflow" not in supervisor.running(layout))
    lines = []
    supervisor.start(layout, lines.append)
    now = {entry.name: entry.pid for entry in recorded(layout)}
    assert {name for name in before if now[name] != before[name]} == {"watcher", "mlflow"}
    assert any("started again: mlflow" in line for line in lines) and supervisor.watched(layout)
    assert api.run("small", "under-way")["state"] == "success"


def test_all_that_is_kept_is_its_owners_alone(up):
    layout, _ = up
    assert layout.state.stat().st_mode & 0o077 == 0
    for path in (
        layout.airflow_home / "airflow.db",
        layout.state / "mlflow" / "mlflow.db",
        layout.airflow_home / "logs",
    ):
        assert path.stat().st_mode & 0o077 == 0, path


def test_down_leaves_no_process_also_where_the_record_is_gone(up):
    layout, _ = up
    living = family(layout)
    assert len(living) > 8
    layout.record.unlink()
    supervisor.take_down(layout, print)
    _, alive = psutil.wait_procs(living.values(), timeout=5)
    assert not any(map(lives, alive))
    assert is_free(layout.airflow_port) and is_free(layout.mlflow_port) and not layout.record.exists()
