"""Facts about a fleet: workers that share no disk run one chain, a death loses nothing, the doctor says why not."""

import base64
import json
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime

import fleet_world
import httpx
import orchestration as o
import psutil
import psycopg2
import pytest
import rights
from fleet_world import BUCKET, DAG, Fleet, wait_for

from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.fleet.checks import fleet
from mlx_tasks.registry.mlflow_registry import Registry
from mlx_tasks.workspace.paths import workspace_path

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
        assert str(state / "dvc-cache") in config and f"s3://{BUCKET}/dvc" in config and "aws_" not in config
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
        ({"ADO_WORKER_KEY": rights.stranger()}, "the server refuses what is signed"),
        ({"ADO_CONTROL_PLANE": "http://127.0.0.1:9"}, "does not answer as Airflow"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        ({"MLFLOW_TRACKING_PASSWORD": "of another worker"}, "does not let alpha in"),
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
        env=world.workers["alpha"] | {"ADO_WORKER_KEY": rights.stranger()}, cwd=world.folder / "alpha" / "checkout",
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


# ---- who gets in


def test_airflow_lets_in_whom_it_should_and_nobody_else(world):
    """A worker's key opens its own calls, each for a moment; it signs for no person and for no task."""
    told = rights.airflow(rights.Knocker(world))
    assert told == {
        "the operator reads connections": 200,
        "nobody reads connections": 401,
        "the control plane's key signs an administrator's token": 200,
        "a worker's key signs the same": 403,
        "a worker's key signs the same in the control plane's name": 403,
        "no key signs the same": 403,
        "a worker forges a task's token": 403,
        "a worker's own call": 400,
        "a worker's call of another kind": 403,
        "a worker's token for a year": 403,
        "a stranger's key": 403,
        "no token": 403,
        "a worker's call at the people's door": 403,
        **{row: 403 for row in told if row.startswith("the REST API at the workers' door")},
        "its health at the workers' door": 200,
        "another site's page": 403,
        "a name that is not this machine's": 421,
    }


def test_mlflow_lets_a_worker_do_its_work_and_only_some_name_what_serves(world):
    assert rights.mlflow(rights.Knocker(world)) == {
        "nobody looks at runs": 401,
        "a wrong password": 401,
        "a worker logs": 200,
        "a worker logs in another's experiment": 200,
        "one that registers makes a version": 200,
        "one that registers moves an alias": 200,
        "one that computes makes a version": 403,
        "one that computes moves an alias": 403,
        "one that computes removes an alias": 403,
        "one that computes takes a name": 403,
        "one that computes takes a name another way": 403,
        "one that computes reads the registry": 200,
        "a worker gives the administrator a password": 403,
        "another site's page": 403,
    }


@pytest.mark.parametrize("worker", ["alpha", "computes"])
def test_a_worker_learns_that_no_model_is_registered_yet(world, worker, monkeypatch, tmp_path):
    """MLflow with logins forbids the aliases and versions of a model that is not there; the first run asks for both."""
    (tmp_path / "authority.pem").write_bytes(base64.b64decode(world.values["TLS_AUTHORITY"]))
    name, password = rights.Knocker(world).login(worker)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    registry = Registry(world.doors["mlflow"])
    assert registry.by_alias("nobody", "champion") is None
    with pytest.raises(DataError, match="no version '1' of model 'nobody'"):
        registry.resolve("nobody/1")


def test_no_page_of_another_site_starts_a_training_through_the_operators_browser(world):
    assert rights.watch(rights.Knocker(world)) == {
        "nobody posts an alert": 401,
        "another site's page, through the operator's browser": 403,
        "a page without an address, through it": 403,
        "its own page": 200,
        "nobody reads Prometheus": 401,
        "the operator reads Prometheus": 200,
    }


@pytest.mark.parametrize(("owner", "other"), [("airflow", "mlflow"), ("mlflow", "airflow")])
def test_a_databases_owner_sees_no_other_and_is_nobody_in_the_server(world, owner, other):
    password = world.values[f"{owner.upper()}_DB_PASSWORD"]
    reach = {"host": "127.0.0.1", "port": world.postgres.port, "user": owner, "password": password}
    for database in (other, "postgres"):
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            psycopg2.connect(**reach, dbname=database)
    connection = psycopg2.connect(**reach, dbname=owner)
    try:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication FROM pg_roles WHERE rolname = %s", (owner,)
        )
        assert cursor.fetchone() == (False, False, False, False)
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("SELECT pg_read_file('/etc/hostname')")
    finally:
        connection.close()


def test_what_a_worker_writes_its_user_alone_may_enter(world, disturbed):
    """DVC opens its site cache to all; the folder around it does not."""
    state = world.folder / "alpha" / "state"
    folders = [path for path in state.rglob("*") if path.is_dir() and not path.is_symlink()]
    others = {path for path in folders if stat.S_IMODE(path.stat().st_mode) & 0o077}
    assert {path for path in others if state / "dvc-site" not in path.parents} == set()
    assert stat.S_IMODE((state / "worker" / "signing_key.pem").stat().st_mode) == 0o600
    files = [path for path in state.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if path.stat().st_mode & 0o022 and state / "dvc-site" not in path.parents]


def test_no_worker_and_no_stage_holds_a_databases_address(world, disturbed):
    worker = psutil.Process(world.processes.running["alpha"].pid)
    for process in (worker, *worker.children(recursive=True)):
        environment = process.environ()
        assert not any("postgresql" in value for value in environment.values())
    stage = disturbed["environment"]
    assert stage["ADO_DVC_REMOTE"].startswith("s3://") and stage["MLFLOW_TRACKING_URI"] == world.mlflow
    assert not any("postgresql" in value or "PRIVATE KEY" in value for value in stage.values())
    assert "ADO_WORKER_KEY" not in stage and "AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH" not in stage


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
