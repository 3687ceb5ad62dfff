"""Facts about a fleet's machines by themselves: a worker's settings, its lives, its service files, its certificates."""

import base64
import json
import os
import plistlib
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orchestration as o
import psutil
import pytest
from fleet_world import wait_for
from rights import stranger

from mlx_tasks.environment_file import read_env_file
from mlx_tasks.errors import DataError
from mlx_tasks.fleet import worker
from mlx_tasks.fleet.checks import clock, disk, overrides, workers
from mlx_tasks.fleet.settings import WorkerSettings, default_name
from mlx_tasks.fleet.worker import plain
from mlx_tasks.workspace.paths import Places


def test_settings_say_what_is_missing(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("ADO_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ADO_STATE", str(tmp_path))
    with pytest.raises(DataError, match="ADO_CONTROL_PLANE must be the address"):
        WorkerSettings.from_environment()
    monkeypatch.setenv("ADO_CONTROL_PLANE", "http://127.0.0.1:8080/")
    for none in ("short", base64.b64encode(b"\xff\xfe").decode(), base64.b64encode(b"no key").decode()):
        monkeypatch.setenv("ADO_WORKER_KEY", none)
        with pytest.raises(DataError, match=f"make secrets WORKER=NAME.*got {len(none)} characters that are none"):
            WorkerSettings.from_environment()
    monkeypatch.setenv("ADO_WORKER_KEY", stranger())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://airflow:secret@db/airflow")
    settings = WorkerSettings.from_environment()
    assert settings.edge_api == "http://127.0.0.1:8080/edge_worker/v1/rpcapi"
    assert settings.name == default_name(tmp_path) == WorkerSettings.from_environment().name
    environment = settings.environment()
    assert "PRIVATE KEY" not in str(environment) and "ADO_WORKER_KEY" not in environment
    kept = Path(environment["AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH"])
    assert "PRIVATE KEY" in kept.read_text() and stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "postgresql" not in str(environment) and overrides(environment).state == "ok"
    assert overrides({**environment, "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "3"}).state == "wrong"
    assert overrides({}).told == "tasks would be forks, and MLX survives no fork"


def test_a_mac_is_kept_awake_by_a_process_beside_the_worker(tmp_path, monkeypatch):
    """On macOS; here a program of that name stands in, which writes down its arguments and lives until it is told."""
    (tmp_path / "caffeinate").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\nexec sleep 60\n')
    (tmp_path / "caffeinate").chmod(0o755)
    settings = WorkerSettings(
        "http://a",
        base64.b64decode(stranger()).decode(),
        "http://b",
        Places(tmp_path, tmp_path, ""),
        ("mlx", "x"),
        "mini",
    )
    assert worker.awake_command(7) is None  # other systems do not fall asleep over work
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert worker.awake_command(7) == [str(tmp_path / "caffeinate"), "-i", "-s", "-w", "7"]
    line = worker.command(settings)
    assert Path(line[0]).name == "airflow" and line[1:3] == ["edge", "worker"]
    assert line[3:9] == ["--queues", "mlx,x", "--concurrency", "1", "--edge-hostname", "mini"]
    before = {process.pid for process in psutil.Process().children()}
    with worker._kept_awake(os.getpid()):
        wait_for("caffeinate", (tmp_path / "told").exists, 60)
        beside = [process for process in psutil.Process().children() if process.pid not in before]
        assert len(beside) == 1 and (tmp_path / "told").read_text().split()[-1] == str(os.getpid())
    assert not beside[0].is_running()


@pytest.fixture
def lives(tmp_path, monkeypatch):
    """`work` over programs in the edge worker's place that end with the codes given, one a life; (its code, lives)."""
    settings = WorkerSettings(
        "http://a", base64.b64decode(stranger()).decode(), "http://b", Places(tmp_path, tmp_path, ""), ("mlx",), "mini"
    )
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.01)

    def run(codes, problems, settled_s=0.0, does="pass"):
        left = iter(codes)
        monkeypatch.setattr(worker, "SETTLED_S", settled_s)
        line = lambda pid: f"pid = {str(pid)!r}; {does}; raise SystemExit({next(left)})"  # noqa: E731
        monkeypatch.setattr(
            worker, "command", lambda settings: [sys.executable, "-c", line(settings.home / "edge.pid")]
        )
        return worker.work(settings, problems), len(codes) - len(list(left))

    return run


def test_a_worker_waits_until_nothing_stands_against_its_next_life(lives, capfd):
    found = iter([["clock: 600 s ahead"]] * 2 + [["MLflow: away"], []])
    assert lives([3, 0, 7], lambda: next(found)) == (0, 2) and next(found, None) is None
    waits = [line for line in capfd.readouterr().out.splitlines() if line.startswith("worker: waits")]
    assert waits == ["worker: waits, for clock: 600 s ahead", "worker: waits, for MLflow: away"]


def test_a_worker_that_never_served_ends_with_its_own_code(lives):
    assert lives([3, 0], list, settled_s=60.0) == (3, 1)


@pytest.mark.parametrize("after", ["pass", "print('taken', flush=True); time.sleep(1); os.unlink(pid)"])
def test_a_worker_that_was_taken_is_started_again_however_young(lives, after):
    """The edge worker leaves its pid file where it is killed, and removes it where it fails."""
    does = f"import os, time; open(pid, 'w').close(); {after}"
    assert lives([3, 0], list, settled_s=60.0, does=does) == (0, 2)


def test_ctrl_c_between_two_lives_is_an_end_that_was_asked_for(lives):
    """With 0, or launchd would start it again."""

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    assert lives([3, 0], interrupted) == (0, 1)


def test_an_environment_file_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "worker.env"
    path.write_text("# comment\nADO_CONTROL_PLANE=http://a\n\nTOKEN='a=b'\n")
    with pytest.raises(DataError, match="chmod 600"):
        read_env_file(path)
    path.chmod(0o600)
    assert read_env_file(path) == {"ADO_CONTROL_PLANE": "http://a", "TOKEN": "a=b"}
    path.write_text("nonsense\n")
    with pytest.raises(DataError, match=r"line 1 of .* must be NAME=VALUE"):
        read_env_file(path)


@pytest.mark.parametrize(("off", "state"), [(0, "ok"), (600, "wrong"), (-600, "wrong")])
def test_a_clock_that_is_off_is_named(off, state, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() - off, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        found = clock(WorkerSettings(url, "", url, Places(tmp_path, tmp_path, ""), ("mlx",), "w"))
    finally:
        server.shutdown()
    assert found.state == state
    if off:
        seconds, where = found.told.split(" s ")
        assert abs(int(seconds) - 600) <= 2 and where.startswith("ahead" if off > 0 else "behind")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    settings = WorkerSettings(
        "http://a",
        base64.b64decode(stranger()).decode(),
        "http://b",
        Places(tmp_path, tmp_path / "no", ""),
        ("mlx",),
        "w",
    )
    assert disk(settings).state == "ok"
    monkeypatch.setattr("mlx_tasks.fleet.checks.LEAST_DISK_GB", 1e9)
    assert disk(settings).state == "wrong"


def test_a_fleet_without_workers_or_with_greedy_ones_is_named():
    assert [one.state for one in workers([])] == ["wrong"]
    one = {"worker_name": "mini", "state": "idle", "queues": ["mlx"], "sysinfo": {"concurrency": 4}}
    found = {finding.check: finding for finding in workers([one, {**one, "worker_name": "old", "state": "offline"}])}
    assert found["queues"].told.startswith("nobody takes default") and "takes 4 tasks at once" in found["mini"].told
    assert "old" not in found["workers"].told


def test_a_terminal_sees_a_tasks_words_alone():
    record = {"timestamp": "2026-01-02T03:04:05.6Z", "event": "[train] 2/2 steps", "task_id": "train", "map_index": -1}
    line = json.dumps(record | {"logger": "airflow.task.operators.stage_operator.StageOperator"})
    assert plain(line) == "03:04:05 train: [train] 2/2 steps"
    assert plain(json.dumps(record | {"logger": "task", "event": "Pushing xcom"})) == ""
    assert plain("worker alpha\n") == "worker alpha" and plain("{broken") == "{broken"


def test_the_launchd_job_and_the_systemd_unit_start_the_worker(tmp_path):
    folder = o.ROOT / "include" / "worker"
    job = plistlib.loads((folder / "org.adaptive-diffusion-optimizer.worker.plist").read_bytes())
    assert job["ProgramArguments"] == ["CHECKOUT/.venv/bin/mlx-tasks", "worker", "--env", "worker.env"]
    assert job["KeepAlive"] == {"SuccessfulExit": False} and job["WorkingDirectory"] == "CHECKOUT"
    text = (folder / "adaptive-diffusion-worker.service").read_text()
    assert "KillSignal=SIGINT" in text and "mlx-tasks worker --env worker.env" in text
    if analyze := shutil.which("systemd-analyze"):
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "mlx-tasks").symlink_to(sys.executable)
        unit = tmp_path / "adaptive-diffusion-worker.service"
        unit.write_text(text.replace("%h/adaptive-diffusion-optimizer", str(tmp_path)))
        done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True)
        assert "adaptive-diffusion-worker" not in done.stderr, done.stderr
