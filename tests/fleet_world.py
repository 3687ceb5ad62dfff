"""A control plane and workers that share no disk: PostgreSQL, Airflow with edge workers, MLflow, an S3 store; all real.

Stages are `orchestration`'s, which take no time. Each worker has a clone, a state folder and a DVC cache of its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import orchestration as o
from debian import program
from ports import free_port

from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.layout import Layout
from mlx_tasks.stack.services import environment as stack_environment

BUCKET, DAG = "artifacts", "fleet_chain"
START_S = 300


def wait_for(what: str, look, seconds: float = START_S):
    """What `look` finds, once it does."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.3)
    return found


def answers(url: str):
    def look():
        try:
            return httpx.get(url, timeout=2, trust_env=False).status_code < 500
        except httpx.TransportError:
            return False

    return look


class Processes:
    """Started in sessions of their own, ended by their own ids."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.running = logs, {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: list[str], env: dict[str, str], cwd: Path | None = None) -> subprocess.Popen:
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=env, cwd=cwd, stdout=log, stderr=log, start_new_session=True)
        self.running[name] = process
        return process

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def stop(self, name: str, number: int = signal.SIGTERM, patience_s: float = 25) -> int:
        process = self.running.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, number)
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    def stop_all(self) -> None:
        for name in reversed(list(self.running)):
            self.stop(name)


class Postgres:
    """A server of PostgreSQL on loopback, under the user `postgres` where this one is root.

    Its folder is beside pytest's, which no other user may enter.
    """

    def __init__(self) -> None:
        program("pg_ctlcluster", "postgresql")
        self.binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        (password := self.folder / "password").write_text("fleet")
        if self.user:
            for path in (self.folder, password):
                shutil.chown(path, "postgres")
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-U", "airflow", "-A", "scram-sha-256", "--pwfile", str(password)
        )

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2://airflow:fleet@127.0.0.1:{self.port}/{database}"

    def start(self, processes: Processes) -> None:
        command = [
            str(self.binaries / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off",
        ]  # fmt: skip
        processes.start("postgres", [*self.user, *command], dict(os.environ))
        ready = [*self.user, str(self.binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        wait_for("PostgreSQL", lambda: subprocess.run(ready, capture_output=True).returncode == 0)

    def create(self, *databases: str) -> None:
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="airflow", password="fleet", dbname="postgres"
        )
        connection.autocommit = True
        for name in databases:
            connection.cursor().execute(f"CREATE DATABASE {name}")
        connection.close()

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run([*self.user, str(self.binaries / name), *arguments], check=True, capture_output=True, text=True)


class Fleet:
    """The control plane, and workers that are added."""

    def __init__(self, folder: Path, real: tuple[str, ...] = ()) -> None:
        """real: stages that compute; the others are `orchestration`'s."""
        self.folder, self.processes = folder, Processes(folder / "logs")
        self.origin = self._origin(real)
        self.secret, self.access = secrets.token_hex(64), "fleet-key"
        self.store, self.mlflow = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        self.layout = Layout(folder / "server", folder / "server-state", free_port(), 0, 0)
        self.postgres = Postgres()
        self.workers: dict[str, dict[str, str]] = {}
        (folder / "behaviour.json").write_text("{}")

    def start(self) -> None:
        """Everything but workers."""
        self.postgres.start(self.processes)
        self.postgres.create("airflow", "mlflow")
        o.run_git(self.folder, "clone", "-q", str(self.origin), str(self.layout.root))
        self.environment = stack_environment(self.layout) | self._server_settings()
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self.store.rpartition(":")[2]]
        self.processes.start("store", moto, dict(os.environ))
        wait_for("the store", answers(self.store))
        self._make_bucket()
        self.start_mlflow()
        self.airflow("db", "migrate")
        self.airflow("pools", "set", "mlx", "64", "a worker takes one task at a time")
        for component in ("api-server", "scheduler", "dag-processor"):
            self.start_airflow(component)
        wait_for("the API server", answers(f"{self.layout.airflow_url}/api/v2/version"))
        wait_for("MLflow", answers(f"{self.mlflow}/health"))
        self.api = AirflowApi(self.layout)
        self.api.wait_for_dag(DAG)

    def start_mlflow(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.mlflow.rpartition(":")[2],
            "--workers", "1", "--backend-store-uri", self.postgres.url("mlflow"),
            "--artifacts-destination", f"s3://{BUCKET}/mlflow",
        ]  # fmt: skip
        self.processes.start("mlflow", command, self.environment | self.credentials())

    def start_airflow(self, component: str) -> None:
        self.processes.start(component, [sys.executable, "-m", "airflow", component], self.environment)

    def airflow(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def add_worker(self, name: str, *options: str, **more: str) -> subprocess.Popen:
        """`mlx-tasks worker` in a clone of its own."""
        root, state = self.folder / name / "checkout", self.folder / name / "state"
        if not root.exists():
            o.run_git(self.folder, "clone", "-q", str(self.origin), str(root))
            for key, value in (("user.name", name), ("user.email", f"{name}@example.org")):
                o.run_git(root, "config", key, value)
        self.workers[name] = {
            **o.environment(root, state),
            **self.credentials(),
            "TEST_BEHAVIOUR": str(self.folder / "behaviour.json"),
            "ADO_CONTROL_PLANE": self.layout.airflow_url,
            "ADO_JWT_SECRET": self.secret,
            "ADO_DVC_REMOTE": f"s3://{BUCKET}/dvc",
            "ADO_DVC_ENDPOINT": self.store,
            "ADO_GIT_REMOTE": "origin",
            "ADO_WORKER_NAME": name,
            "MLFLOW_TRACKING_URI": self.mlflow,
            **more,
        }
        return self.processes.start(
            name, [sys.executable, "-m", "mlx_tasks", "worker", *options], self.workers[name], root
        )

    def doctor(self, name: str, **more: str) -> subprocess.CompletedProcess[str]:
        """What the doctor says where a worker runs, with other settings."""
        return subprocess.run(
            [sys.executable, "-m", "mlx_tasks", "doctor"], env=self.workers[name] | more, capture_output=True,
            text=True, timeout=120, cwd=self.folder / name / "checkout",
        )  # fmt: skip

    def credentials(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": "fleet-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": self.store,
        }

    def state(self, run_id: str, seconds: float = 300) -> str:
        """How a run ended."""
        ended = ("success", "failed")
        return wait_for(
            f"the end of {run_id}",
            lambda: (found := self.api.run(DAG, run_id)["state"]) in ended and found,
            seconds,
        )

    def tasks(self, run_id: str) -> list[dict]:
        return self.api.tasks(DAG, run_id)

    def stop(self) -> None:
        self.processes.stop_all()
        shutil.rmtree(self.postgres.folder, ignore_errors=True)

    def _server_settings(self) -> dict[str, str]:
        settings = {
            "CORE__EXECUTOR": "airflow.providers.edge3.executors.EdgeExecutor",
            "DATABASE__SQL_ALCHEMY_CONN": self.postgres.url("airflow"),
            "API_AUTH__JWT_SECRET": self.secret,
            "EDGE__API_ENABLED": "True",
            "EDGE__API_URL": f"{self.layout.airflow_url}/edge_worker/v1/rpcapi",
            "EDGE__HEARTBEAT_INTERVAL": "10",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        }
        named = {f"AIRFLOW__{key}": value for key, value in settings.items()}
        return {**named, "ADO_QUEUE": "mlx", "ADO_RETRY_DELAY_S": "1", "MLFLOW_TRACKING_URI": self.mlflow}

    def _origin(self, real: tuple[str, ...]) -> Path:
        made = o.make_repository(self.folder / "made", real)
        shutil.copy2(Path(__file__).with_name("fleet_chain.py"), made / "dags")
        o.run_git(made, "add", "dags")
        o.run_git(made, "commit", "-qm", "a short chain")
        bare = self.folder / "origin.git"
        o.run_git(self.folder, "clone", "-q", "--bare", str(made), str(bare))
        return bare

    def stored(self) -> list[str]:
        """Keys of the store."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def content(self, key: str) -> bytes:
        """What the store holds under a key."""
        return self._client().get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def _make_bucket(self) -> None:
        self._client().create_bucket(Bucket=BUCKET)

    def _client(self):
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.store, region_name="us-east-1", aws_access_key_id=self.access,
            aws_secret_access_key="fleet-secret",
        )  # fmt: skip
