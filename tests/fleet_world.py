"""A control plane and workers that share no disk: PostgreSQL, Airflow with edge workers, MLflow, an S3 store, and the
proxy before them; all real, and set up by the scripts of include/compose, which find here what a container would have.

Stages are `orchestration`'s, which take no time. Each worker has a clone, a state folder and a DVC cache of its own.
"""

from __future__ import annotations

import os
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
COMPOSE = o.ROOT / "include" / "compose"
DOORS = ("airflow", "workers", "mlflow", "store", "grafana", "prometheus", "alertmanager")
WORKERS = {"alpha": (), "beta": (), "lost": (), "computes": ("--computes-only",)}
"""Whom the control plane knows; another name works under alpha's rights."""


def read_values(path: Path) -> dict[str, str]:
    """A file of settings."""
    lines = [line.partition("=") for line in path.read_text().splitlines() if line and line[0] != "#"]
    return {name: value for name, _, value in lines}


def make_secrets(folder: Path, *options: str) -> str:
    """`make secrets` with its files in a folder; what it said."""
    command = [sys.executable, str(COMPOSE / "make_secrets.py"), "--folder", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
            "initdb",
            "-D",
            str(self.folder / "data"),
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(password),
        )

    def url(self, owner: str, password: str) -> str:
        return f"postgresql+psycopg2://{owner}:{password}@127.0.0.1:{self.port}/{owner}"

    def init(self, values: dict[str, str]) -> None:
        """The databases and their owners, as the service postgres-init makes them."""
        env = {**os.environ, **values, "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres"}
        env |= {"PGPASSWORD": "fleet", "PATH": f"{self.binaries}:{os.environ['PATH']}"}
        done = subprocess.run(["sh", str(COMPOSE / "init_postgres.sh")], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

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
            host="127.0.0.1", port=self.port, user="postgres", password="fleet", dbname="postgres"
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
        self.access = "fleet-key"
        self.store, self.inner_mlflow = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        self.watch = tuple(f"http://127.0.0.1:{free_port()}" for _ in range(2))
        first = free_port(len(DOORS))
        self.doors = {name: f"https://127.0.0.1:{first + number}" for number, name in enumerate(DOORS)}
        self.mlflow = self.doors["mlflow"]
        self.layout = Layout(folder / "server", folder / "server-state", free_port(), 0, 0)
        self.postgres = Postgres()
        self.workers: dict[str, dict[str, str]] = {}
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        for name, options in WORKERS.items():
            make_secrets(self.secrets, "--hosts", "127.0.0.1", "--worker", name, *options)
        (folder / "behaviour.json").write_text("{}")

    @property
    def values(self) -> dict[str, str]:
        """What .env holds."""
        return read_values(self.secrets / ".env")

    def start(self) -> None:
        """Everything but workers."""
        self.postgres.start(self.processes)
        self.postgres.init(self.values)
        o.run_git(self.folder, "clone", "-q", str(self.origin), str(self.layout.root))
        self.environment = stack_environment(self.layout) | self._server_settings()
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self.store.rpartition(":")[2]]
        self.processes.start("store", moto, dict(os.environ))
        wait_for("the store", answers(self.store))
        self._make_bucket()
        self.start_mlflow()
        self.start_watch()
        self.start_proxy()
        self.airflow("db", "migrate")
        self.airflow("pools", "set", "mlx", "64", "a worker takes one task at a time")
        for component in ("api-server", "scheduler", "dag-processor"):
            self.start_airflow(component)
        wait_for("the API server", answers(f"{self.layout.airflow_url}/api/v2/version"))
        wait_for("MLflow", answers(f"{self.inner_mlflow}/health"))
        self.api = AirflowApi(self.layout)
        self.api.wait_for_dag(DAG)

    def start_proxy(self) -> None:
        """nginx, which alone workers reach."""
        folder = self.folder / "proxy"
        inside = {"AIRFLOW": self.layout.airflow_url, "MLFLOW": self.inner_mlflow, "STORE": self.store}
        inside |= {"PROMETHEUS": self.watch[0], "ALERTMANAGER": self.watch[1]}
        settings = {f"PROXY_{name}": url.removeprefix("http://") for name, url in inside.items()}
        settings |= {f"{name.upper()}_DOOR": url.rpartition(":")[2] for name, url in self.doors.items()}
        if os.geteuid() == 0:
            settings["PROXY_USER"] = "root"  # pytest's folders are root's alone
        settings |= {
            "PROXY_FOLDER": str(folder),
            "PROXY_LISTEN": "127.0.0.1",
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }
        program("nginx", "nginx-light")
        self.processes.start(
            "proxy", ["sh", str(COMPOSE / "start_proxy.sh")], {**os.environ, **self.values, **settings}
        )

    def start_watch(self) -> None:
        """Prometheus and Alertmanager, which let everybody in that the proxy lets through."""
        prometheus, alertmanager = (url.removeprefix("http://") for url in self.watch)
        (self.folder / "prometheus.yml").write_text("global: {scrape_interval: 15s}\n")
        commands = {
            "prometheus": [
                program("prometheus", "prometheus"), f"--config.file={self.folder}/prometheus.yml",
                f"--storage.tsdb.path={self.folder}/prometheus", f"--web.listen-address={prometheus}",
            ],
            "alertmanager": [
                program("prometheus-alertmanager", "prometheus-alertmanager"), "--cluster.listen-address=",
                f"--config.file={COMPOSE}/alertmanager.yml", f"--storage.path={self.folder}/alertmanager",
                f"--web.listen-address={alertmanager}",
            ],
        }  # fmt: skip
        for (name, command), url in zip(commands.items(), self.watch, strict=True):
            self.processes.start(name, command, dict(os.environ))
            wait_for(name, answers(f"{url}/-/ready"))

    def start_mlflow(self) -> None:
        """Its logins, and its server."""
        values = self.values
        settings = {
            **self.environment,
            **self.credentials(),
            "MLFLOW_BACKEND_STORE_URI": self.postgres.url("mlflow", values["MLFLOW_DB_PASSWORD"]),
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "basic_auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": values["MLFLOW_ADMIN_PASSWORD"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": values["MLFLOW_SESSION_KEY"],
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": self.inner_mlflow.rpartition(":")[2],
            "MLFLOW_WORKERS": "1",
            "WORKER_LOGINS": values["WORKER_LOGINS"],
        }
        init = ["sh", str(COMPOSE / "start_mlflow.sh"), "init"]
        done = subprocess.run(init, env=settings, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        self.processes.start("mlflow", ["sh", str(COMPOSE / "start_mlflow.sh")], settings)

    def start_airflow(self, component: str) -> None:
        keys = {name: self.values[name] for name in ("AIRFLOW_SIGNING_KEY", "WORKER_KEYS")}
        command = ["bash", str(COMPOSE / "start_airflow.sh"), component]
        self.processes.start(component, command, self.environment | keys)

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
            **read_values(self.secrets / f"worker-{name if name in WORKERS else 'alpha'}.env"),
            "TEST_BEHAVIOUR": str(self.folder / "behaviour.json"),
            "ADO_CONTROL_PLANE": self.doors["workers"],
            "ADO_DVC_ENDPOINT": self.doors["store"],
            "MLFLOW_TRACKING_URI": self.mlflow,
            "ADO_WORKER_NAME": name,
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
            "DATABASE__SQL_ALCHEMY_CONN": self.postgres.url("airflow", self.values["AIRFLOW_DB_PASSWORD"]),
            "API_AUTH__JWT_SECRET": "",
            "API_AUTH__JWT_PRIVATE_KEY_PATH": str(self.secrets / "signing_key.pem"),
            "EDGE__TRUSTED_JWKS_URL": str(self.secrets / "workers.json"),
            "EDGE__JWT_AUDIENCE": "api",
            "EDGE__JWT_VERIFIER": "mlx_tasks.fleet.tokens.may_call",
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
