"""The embedded stack: ports, one at a time, clean-up by own ids, and how a run is told in the terminal."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from ports import free_port

from mlx_tasks.errors import BusyError, DataError, UnavailableError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.stack import supervisor
from mlx_tasks.stack.follow import nodes_of
from mlx_tasks.stack.layout import Layout, is_free
from mlx_tasks.stack.secrets import load_secrets
from mlx_tasks.stack.services import Service, environment

PARENT_OF_A_SESSION = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def layout(tmp_path, repository, monkeypatch):
    monkeypatch.setenv("ADO_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ADO_AIRFLOW_PORT", str(free_port()))
    monkeypatch.setenv("ADO_MLFLOW_PORT", str(free_port()))
    return Layout.of(repository)


def sleeper():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


def record(layout, *entries):
    write_json(layout.record, {"processes": [{"name": n, "pid": p, "born": b} for n, p, b in entries]})


def test_a_port_that_is_no_port_is_refused(monkeypatch, repository):
    for bad in ("http", "80", "70000"):
        monkeypatch.setenv("ADO_AIRFLOW_PORT", bad)
        with pytest.raises(DataError, match=f"ADO_AIRFLOW_PORT must be a port.*'{bad}'"):
            Layout.of(repository)


def test_a_taken_port_names_its_holder_and_a_free_one(layout):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", layout.mlflow_port))
        holder.listen()
        with pytest.raises(BusyError) as caught:
            supervisor.start(layout, lambda text: None)
    words = str(caught.value)
    assert str(layout.mlflow_port) in words and f"pid {os.getpid()}" in words
    offered = int(words.split("ADO_MLFLOW_PORT=")[1].split()[0])
    assert is_free(offered)
    assert not layout.record.exists(), "nothing was started"


def test_only_one_may_work_on_a_stack_and_the_other_is_told_who_does(layout):
    program = (
        "import sys, time; from pathlib import Path; from mlx_tasks.stack import supervisor\n"
        "from mlx_tasks.stack.layout import Layout\n"
        "with supervisor.exclusive(Layout.of(Path(sys.argv[1])), 'a demo'): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(layout.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=rf"a demo \(pid {holder.pid}\).*make down"):
            with supervisor.exclusive(layout, "another"):
                pass
        holder.kill()
        holder.wait()
        with supervisor.exclusive(layout, "another"):
            pass  # a dead holder holds nothing
    finally:
        holder.kill()
        holder.wait()


def test_stop_ends_the_recorded_processes_with_their_children_and_no_others(layout):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT_OF_A_SESSION], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    bystander, stranger = sleeper(), sleeper()
    try:
        child = int(parent.stdout.readline())
        born = psutil.Process(stranger.pid).create_time()
        record(
            layout,
            ("ours", parent.pid, psutil.Process(parent.pid).create_time()),
            ("a reused pid", stranger.pid, born - 3600),
        )
        assert supervisor.stop(layout, lambda text: None) == 2
        parent.wait(5)
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        assert bystander.poll() is None and stranger.poll() is None
        assert not layout.record.exists()
    finally:
        for process in (parent, bystander, stranger):
            process.kill()
            process.wait()


def test_a_component_that_ends_takes_the_rest_down_and_its_log_is_shown(layout, monkeypatch):
    lives = Service("lives", (sys.executable, "-c", "import time; time.sleep(600)"))
    dies = Service("dies", (sys.executable, "-c", "import time; time.sleep(1); raise SystemExit('no such table: dag')"))
    pids = []
    launch = supervisor._launch
    monkeypatch.setattr(
        supervisor, "_launch", lambda *a: (lambda made: (pids.append(made[1].pid), made)[1])(launch(*a))
    )
    monkeypatch.setattr(supervisor, "services", lambda layout: [lives, dies])
    monkeypatch.setattr(supervisor, "_migrate", lambda layout, settings: None)
    with pytest.raises(UnavailableError, match=r"dies ended with 1(.|\n)*no such table: dag"):
        supervisor.start(layout, lambda text: None)
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_an_interrupt_is_one_path_for_all_three_signals():
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt), supervisor.terminable():
            os.kill(os.getpid(), number)
            time.sleep(1)


def test_secrets_are_made_once_and_are_their_owners_alone(layout):
    first = load_secrets(layout.state)
    assert first == load_secrets(layout.state)
    assert len(first["jwt_secret"]) >= 64
    assert (layout.state / "secrets.json").stat().st_mode & 0o077 == 0


def test_secrets_from_before_are_kept_and_what_they_lack_is_added(tmp_path):
    old = {"jwt_secret": "a", "api_secret_key": "b", "fernet_key": "c", "password": "d"}
    write_json(tmp_path / "secrets.json", old)
    now = load_secrets(tmp_path)
    assert {name: now[name] for name in old} == old and len(now["alert_token"]) >= 32 and len(now["alert_secret"]) >= 32
    assert load_secrets(tmp_path) == now


def test_every_component_listens_on_loopback_and_phones_nobody(layout):
    settings = environment(layout)
    assert settings["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert settings["AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"] == "False"
    assert settings["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].endswith(f"{layout.airflow_home}/airflow.db")


def task(task_id, state, begin=None, end=None, try_number=1):
    stamp = "2026-01-01T00:00:{:02d}Z"
    return {
        "task_id": task_id,
        "state": state,
        "try_number": try_number,
        "start_date": stamp.format(begin) if begin is not None else None,
        "end_date": stamp.format(end) if end is not None else None,
    }


def test_a_group_and_its_mapped_tasks_are_one_node():
    nodes = nodes_of([
        task("search.plan_0", "success", 0, 2),
        task("search.trial_0", "success", 2, 12),
        task("search.trial_0", "success", 12, 25, try_number=2),
        task("search.select", None),
        task("tune", None),
    ])  # fmt: skip
    assert [(n.name, n.state, n.seconds, n.tries) for n in nodes] == [
        ("search", "running", 25.0, 2),
        ("tune", "waiting", 0.0, 1),
    ]


def test_a_failure_is_what_a_node_says_first():
    [node] = nodes_of(
        [
            task("search.trial_0", "success", 0, 1),
            task("search.trial_0", "failed", 1, 2),
            task("search.select", "upstream_failed"),
        ]
    )
    assert node.state == "failed"


def test_the_newest_run_is_kept_for_who_follows(layout):
    assert supervisor.noted_run(layout) is None
    supervisor.note_run(layout, "demo__1")
    assert supervisor.noted_run(layout) == "demo__1"
    assert read_json(layout.state / "latest_run.json") == {"run_id": "demo__1"}
