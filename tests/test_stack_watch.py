"""The watcher of the embedded stack: what it starts again, what it gives up, and what a dead part leaves behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from ports import free_port

from mlx_tasks.errors import UnavailableError
from mlx_tasks.stack import services as parts
from mlx_tasks.stack import supervisor, watch
from mlx_tasks.stack.demo import follow_latest
from mlx_tasks.stack.layout import Layout
from mlx_tasks.stack.processes import Entry, entry_of, note, noted_problem, recorded

SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")
LEAVES_A_CHILD = """
import os, time
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.setenv("ADO_STATE", str(tmp_path / "state"))
    for name in ("AIRFLOW", "MLFLOW", "SERVER"):
        monkeypatch.setenv(f"ADO_{name}_PORT", str(free_port()))
    layout = Layout.of(tmp_path)
    layout.logs.mkdir(parents=True)
    yield layout
    supervisor.stop(layout, lambda text: None)


@pytest.fixture
def two(layout, monkeypatch):
    """A stack of two parts that sleep, recorded and alive."""
    services = [parts.Service("calm", SLEEPS), parts.Service("other", SLEEPS)]
    for module in (watch, supervisor):
        monkeypatch.setattr(module, "services", lambda layout: services)
    for service in services:
        supervisor.launch_again(layout, service)
    return layout


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def kill(layout, name):
    [entry] = [entry for entry in recorded(layout) if entry.name == name]
    os.kill(entry.pid, signal.SIGKILL)
    while entry.process():
        time.sleep(0.01)
    return entry.pid


def test_a_killed_part_is_started_again_and_told_once_and_the_other_is_left_alone(two, capsys):
    watcher, before = watch.Watcher(two), supervisor.running(two)
    assert watcher.look() == "" and capsys.readouterr().out == ""
    killed = kill(two, "calm")
    assert watcher.look() == watcher.look() == ""
    now = supervisor.running(two)
    assert now["calm"].pid != killed and now["other"] == before["other"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "calm has died" in lines[0] and str(two.logs / "calm.log") in lines[0]


def test_a_part_that_keeps_dying_is_given_up_the_rest_is_ended_and_followers_are_told_why(two, monkeypatch, capsys):
    monkeypatch.setattr(watch, "POLL_S", 0.02)
    dies = parts.Service("calm", (sys.executable, "-c", "raise SystemExit('no such table: dag')"))
    others = supervisor.running(two)["other"]
    monkeypatch.setattr(watch, "services", lambda layout: [dies, parts.Service("other", SLEEPS)])
    kill(two, "calm")
    assert watch.watch(two, threading.Event()) == 1
    told = capsys.readouterr().out
    assert told.count("is started again") == watch.MOST_DEATHS and "exit code 1" in told
    assert "no such table: dag" in noted_problem(two) and "`make up`" in noted_problem(two)
    assert gone(others.pid) and supervisor.running(two) == {}
    supervisor.note_run(two, "demo__1")
    with pytest.raises(UnavailableError, match="no such table: dag"):
        follow_latest(two.root, None, plain=True)


def test_deaths_long_ago_do_not_count(two, monkeypatch):
    monkeypatch.setattr(watch, "WITHIN_S", 0.0)
    watcher = watch.Watcher(two, most_deaths=1)
    for _ in range(3):
        kill(two, "calm")
        assert watcher.look() == ""


def test_a_part_that_lives_and_does_not_answer_is_ended_after_so_many_looks_in_a_row(two, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_EVERY", 1)
    answers = iter([*[{"calm": "no answer"}] * 5, {}, *[{"calm": "no answer"}] * watch.DEAF_LOOKS])
    monkeypatch.setattr(watch, "ill_parts", lambda layout: next(answers, {}))
    watcher, before = watch.Watcher(two), supervisor.running(two)
    for _ in range(5 + 1 + watch.DEAF_LOOKS - 1):
        assert watcher.look() == ""
    assert supervisor.running(two) == before
    watcher.look()
    assert set(supervisor.running(two)) == {"other"}
    watcher.look()
    assert supervisor.running(two)["calm"].pid != before["calm"].pid


def test_what_a_dead_part_left_in_its_session_is_ended_and_a_stranger_with_its_number_is_not(layout):
    parent = subprocess.Popen(
        [sys.executable, "-c", LEAVES_A_CHILD], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    stranger = subprocess.Popen(SLEEPS, start_new_session=True)
    try:
        child = int(parent.stdout.readline())
        entry = entry_of("scheduler", parent.pid)
        parent.kill()
        parent.wait()
        assert not gone(child)
        note(layout, [entry, Entry("reused", stranger.pid, entry.born - 3600)])
        assert supervisor.stop(layout, lambda text: None) == 1
        assert gone(child) and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_the_ports_of_the_stack_that_is_up_are_found_without_the_variables_and_others_are_refused(two, monkeypatch):
    monkeypatch.delenv("ADO_AIRFLOW_PORT")
    monkeypatch.delenv("ADO_MLFLOW_PORT")
    assert Layout.of(two.root) == two
    monkeypatch.setenv("ADO_AIRFLOW_PORT", str(free_port()))
    with pytest.raises(supervisor.BusyError, match=rf"on port {two.airflow_port}.*make down"):
        supervisor.start(Layout.of(two.root), lambda text: None)
    assert len(supervisor.running(two)) == 2, "what is up stays up"


def test_the_watcher_ends_with_the_stack(two):
    supervisor.start_watcher(two)
    [watcher] = [entry for entry in recorded(two) if entry.name == "watcher"]
    pids = [entry.pid for entry in recorded(two)]
    assert supervisor.watched(two) and watcher.process().terminal() is None
    supervisor.take_down(two, lambda text: None)
    assert all(map(gone, pids)) and not two.record.exists()
