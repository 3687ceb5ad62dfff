"""Facts about a fleet: workers that share no disk run one chain, a death loses nothing, the doctor says why not."""

import json
import os
import plistlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fleet_world
import httpx
import orchestration as o
import psutil
import pytest
from fleet_world import BUCKET, DAG, Fleet, wait_for

from mlx_tasks.environment_file import read_env_file
from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.fleet import worker
from mlx_tasks.fleet.checks import clock, disk, fleet, overrides, workers
from mlx_tasks.fleet.settings import WorkerSettings, default_name
from mlx_tasks.fleet.worker import plain
from mlx_tasks.workspace.paths import Places, workspace_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RETRY_S = 240
"""Long: how soon it comes is measured by benchmarks/chaos.py."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    running = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def disturbed(world):
    """A run whose train stage hangs on one of two workers, which is killed with all it started, and comes back."""
    hangs = world.folder / "hangs"
    behaviour = {"train": {"fails": 1, "kind": "hang", "started": str(hangs)}}
    (world.folder / "behaviour.json").write_text(json.dumps(behaviour))
    processes = {name: world.add_worker(name) for name in ("alpha", "beta")}
    world.api.trigger(DAG, "fleet", {"preset": "toy"})
    wait_for("a stage that hangs", hangs.exists)
    train = lambda: next(task for task in world.tasks("fleet") if task["task_id"] == "train")  # noqa: E731
    victim = train()["hostname"]
    wait_for("both workers", lambda: all("takes mlx" in world.processes.log(name) for name in processes))
    wait_for("its checkpoint's copy", lambda: any(key.endswith("/train/index.json") for key in world.stored()))
    root = psutil.Process(processes[victim].pid)
    stage = next(one for one in root.children(recursive=True) if one.cmdline()[-1:] == ["train"])
    environment = stage.environ()
    for process in (root, *root.children(recursive=True)):
        process.kill()
    world.processes.running.pop(victim).wait()
    again = lambda: train()["try_number"] > 1 and train()["state"] in ("running", "success")  # noqa: E731
    wait_for("the retry", again, RETRY_S)
    world.add_worker(victim)
    state = world.state("fleet", 600)
    return {"victim": victim, "state": state, "tasks": world.tasks("fleet"), "environment": environment}


def test_a_stage_of_a_worker_that_died_starts_again_elsewhere(world, disturbed):
    train = next(task for task in disturbed["tasks"] if task["task_id"] == "train")
    assert disturbed["state"] == "success", world.processes.log("scheduler")[-3000:]
    assert train["try_number"] == 2 and train["hostname"] != disturbed["victim"]


def test_it_goes_on_from_the_checkpoint_that_the_dead_worker_wrote(world, disturbed):
    """The stage hangs at its first try, which it knows by its checkpoints: without them it would hang again."""
    other = next(name for name in ("alpha", "beta") if name != disturbed["victim"])
    assert "train: brought the checkpoints of" in world.processes.log(other)
    assert not any("/checkpoints/" in key for key in world.stored())  # stages that ended need none


def test_what_a_stage_needs_comes_by_hash_from_the_store(world, disturbed):
    hosts = {task["task_id"]: task["hostname"] for task in disturbed["tasks"] if task["hostname"]}
    assert {hosts["train"], disturbed["victim"]} == {"alpha", "beta"}
    assert hosts["validate"] and any("brought" in world.processes.log(name) for name in ("alpha", "beta"))
    run = "fleet"
    locks = []
    for name in ("alpha", "beta"):
        state = world.folder / name / "state"
        workspace = workspace_path(state, run)
        assert (workspace / "dvc.lock").is_file()
        config = (workspace / ".dvc" / "config.local").read_text()
        assert str(state / "dvc-cache") in config and f"s3://{BUCKET}/dvc" in config and "fleet-secret" not in config
        locks.append((workspace / "dvc.lock").read_text())
    branch = o.run_git(world.origin, "for-each-ref", "--format=%(refname)", "refs/heads/runs").split()
    assert len(branch) == 1
    final = o.run_git(world.origin, "show", f"{branch[0]}:dvc.lock")
    assert "search_trial" in final and final in locks  # what close_run committed is what its worker had


def test_a_worker_that_comes_back_waits_until_its_name_is_free(world, disturbed):
    log = world.processes.log(disturbed["victim"])
    assert log.count("takes mlx, default from") >= 2
    workers_now = {one["worker_name"]: one for one in told(world)}
    assert workers_now[disturbed["victim"]]["state"] in ("idle", "running")


def test_the_server_sees_a_whole_fleet(world, disturbed):
    findings = fleet(world.layout.airflow_url, password(world))
    states = {one.check: one.state for one in findings}
    assert {check: states.get(check) for check in ("workers", "queues", "API server")} == {
        "workers": "ok",
        "queues": "ok",
        "API server": "ok",
    }, findings
    names = next(one for one in findings if one.check == "workers").told
    assert "alpha" in names and "beta" in names


def test_an_edge_worker_that_dies_is_started_again(world, disturbed):
    """It comes back while the doctor is asked other things, under its name, which is free five heartbeats later.

    However young it is: beta's may be of the life that `disturbed` began.
    """
    wait_for("the control plane's word", (world.folder / "beta/state/worker/edge.pid").exists)
    (edge,) = psutil.Process(world.processes.running["beta"].pid).children()
    edge.kill()
    wait_for("the news", lambda: "ended unasked (exit code -9) and is started again" in world.processes.log("beta"))


def test_the_doctor_finds_nothing_wrong_where_nothing_is(world, disturbed):
    done = world.doctor("alpha")
    assert done.returncode == 0 and done.stdout.endswith("nothing is wrong\n"), done.stdout
    assert "edge provider" in done.stdout and "written, read, removed" in done.stdout


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"ADO_JWT_SECRET": "x" * 64}, "the server refuses what is signed"),
        ({"ADO_CONTROL_PLANE": "http://127.0.0.1:9"}, "does not answer as Airflow"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        ({"ADO_DVC_ENDPOINT": "http://127.0.0.1:9"}, "WRONG    artifact store"),
        ({"ADO_DVC_REMOTE": "gopher://there"}, "must be a folder or begin with s3://"),
        ({"ADO_GIT_REMOTE": "nowhere"}, "WRONG    git remote"),
    ],
)
def test_the_doctor_names_what_is_wrong_and_how_to_mend_it(world, disturbed, setting, said):
    done = world.doctor("alpha", **setting)
    assert done.returncode == ExitCode.UNAVAILABLE and said in done.stdout, done.stdout
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert len(wrong) == 1 and "fix:" in done.stdout.partition(wrong[0])[2].splitlines()[1]


def test_a_worker_does_not_start_where_the_doctor_finds_something(world, disturbed):
    done = subprocess.run(
        [sys.executable, "-m", "mlx_tasks", "worker"], capture_output=True, text=True, timeout=120,
        env=world.workers["alpha"] | {"ADO_JWT_SECRET": "x" * 64}, cwd=world.folder / "alpha" / "checkout",
    )  # fmt: skip
    assert done.returncode == ExitCode.UNAVAILABLE and "worker: not started" in done.stdout


def test_two_workers_of_one_folder_or_one_name_do_not_meet(world, disturbed):
    second = subprocess.run(
        [sys.executable, "-m", "mlx_tasks", "worker", "--no-checks"], capture_output=True, text=True, timeout=60,
        env=world.workers["alpha"], cwd=world.folder / "alpha" / "checkout",
    )  # fmt: skip
    assert second.returncode == ExitCode.BUSY and "worker alpha" in second.stderr
    world.add_worker("impostor", "--no-checks", "--name", "alpha")
    wait_for("the refusal", lambda: "the name alpha is still taken" in world.processes.log("impostor"))
    world.processes.stop("impostor")
    assert {one["worker_name"] for one in told(world)} == {"alpha", "beta"}


def test_the_edge_worker_that_died_is_back(world, disturbed):
    """Only one that the server has taken has heartbeats; until then its name is its last life's."""
    began, beta = datetime.now(UTC), lambda: [one for one in told(world) if one["worker_name"] == "beta"]
    wait_for("its heartbeat", lambda: datetime.fromisoformat(beta()[0]["last_heartbeat"]) > began)
    assert len(beta()) == 1 and beta()[0]["state"] == "idle"
    assert "takes mlx" in world.processes.log("beta").partition("ended unasked")[2]


def test_the_first_ctrl_c_lets_a_worker_go_and_the_server_knows(world, disturbed):
    process = world.processes.running["beta"]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "finishes its task and ends" in world.processes.log("beta")
    assert {one["worker_name"]: one["state"] for one in told(world)}["beta"] == "offline"
    world.processes.running.pop("beta")


def test_no_worker_and_no_stage_holds_a_databases_address(world, disturbed):
    worker = psutil.Process(world.processes.running["alpha"].pid)
    for process in (worker, *worker.children(recursive=True)):
        environment = process.environ()
        assert not any("postgresql" in value for value in environment.values())
    stage = disturbed["environment"]
    assert stage["ADO_DVC_REMOTE"].startswith("s3://") and stage["MLFLOW_TRACKING_URI"] == world.mlflow
    assert not any("postgresql" in value or world.secret in value for value in stage.values())


# ---- without a control plane


def test_settings_say_what_is_missing(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("ADO_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ADO_STATE", str(tmp_path))
    with pytest.raises(DataError, match="ADO_CONTROL_PLANE must be the address"):
        WorkerSettings.from_environment()
    monkeypatch.setenv("ADO_CONTROL_PLANE", "http://127.0.0.1:8080/")
    monkeypatch.setenv("ADO_JWT_SECRET", "short")
    with pytest.raises(DataError, match="at least 32 characters, got 5"):
        WorkerSettings.from_environment()
    monkeypatch.setenv("ADO_JWT_SECRET", "s" * 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://airflow:secret@db/airflow")
    settings = WorkerSettings.from_environment()
    assert settings.edge_api == "http://127.0.0.1:8080/edge_worker/v1/rpcapi"
    assert settings.name == default_name(tmp_path) == WorkerSettings.from_environment().name
    environment = settings.environment()
    assert "postgresql" not in str(environment) and overrides(environment).state == "ok"
    assert overrides({**environment, "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "3"}).state == "wrong"
    assert overrides({}).told == "tasks would be forks, and MLX survives no fork"


def test_a_mac_is_kept_awake_by_a_process_beside_the_worker(tmp_path, monkeypatch):
    """On macOS; here a program of that name stands in, which writes down its arguments and lives until it is told."""
    (tmp_path / "caffeinate").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\nexec sleep 60\n')
    (tmp_path / "caffeinate").chmod(0o755)
    settings = WorkerSettings("http://a", "s" * 64, "http://b", Places(tmp_path, tmp_path, ""), ("mlx", "x"), "mini")
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
    settings = WorkerSettings("http://a", "s" * 64, "http://b", Places(tmp_path, tmp_path, ""), ("mlx",), "mini")
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
        found = clock(WorkerSettings(url, "s" * 64, url, Places(tmp_path, tmp_path, ""), ("mlx",), "w"))
    finally:
        server.shutdown()
    assert found.state == state
    if off:
        seconds, where = found.told.split(" s ")
        assert abs(int(seconds) - 600) <= 2 and where.startswith("ahead" if off > 0 else "behind")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    settings = WorkerSettings("http://a", "s" * 64, "http://b", Places(tmp_path, tmp_path / "no", ""), ("mlx",), "w")
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


def password(world: fleet_world.Fleet) -> str:
    return json.loads((world.layout.airflow_home / "simple_auth_manager_passwords.json").read_text())["admin"]


def told(world: fleet_world.Fleet) -> list[dict]:
    url = world.layout.airflow_url
    token = httpx.post(
        f"{url}/auth/token", json={"username": "admin", "password": password(world)}, trust_env=False
    ).json()["access_token"]
    answer = httpx.get(
        f"{url}/edge_worker/ui/worker", headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20
    )
    return answer.raise_for_status().json()["workers"]
