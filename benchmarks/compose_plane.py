"""A clone of this checkout whose control plane runs in containers, and what a trial asks of it."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from record import ROOT

from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.layout import Layout, is_free
from mlx_tasks.trust import believe

PROJECT = "ado-trial"
PORTS = {
    "airflow": 8080, "workers": 8081, "mlflow": 5000, "store": 8333,
    "prometheus": 9090, "alertmanager": 9093, "grafana": 3000,
}  # fmt: skip
WORKERS = ("worker", "empty")
ONCE = ("check-secrets", "postgres-init", "airflow-init", "mlflow-init", "store-init")
START_S = 420


class Plane:
    """One control plane.  `compose`: the words that call Compose, old or new."""

    def __init__(self, folder: Path, compose: list[str]) -> None:
        self.folder, self.compose_words = folder, compose
        self.server, self.origin = folder / "server", folder / "origin.git"
        self.layout = Layout(self.server, folder / "state", PORTS["airflow"], PORTS["mlflow"], 8090)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ADO_", "AIRFLOW", "MLFLOW"))},
            "COMPOSE_PROJECT_NAME": PROJECT,
            "ADO_COMPOSE": " ".join(compose),
        }

    def prepare(self, earlier: Path | None) -> None:
        """Clones and secrets; of an earlier trial its secrets and runs.  Raises: SystemExit where a port is taken."""
        taken = [f"{name} ({port})" for name, port in PORTS.items() if not is_free(port)]
        if taken:
            raise SystemExit(f"loopback ports of the control plane are in use here: {', '.join(taken)}")
        os.umask(0o022)  # containers read the checkout as users of their own
        self.folder.chmod(0o755)
        for source, target, more in ((ROOT, self.origin, ["--bare"]), (self.origin, self.server, [])):
            self.run("git", "clone", "-q", *more, str(source), str(target), cwd=self.folder)
        if earlier:
            branches = "refs/heads/runs/*:refs/heads/runs/*"
            self.run("git", "fetch", "-q", str(earlier / "origin.git"), branches, cwd=self.origin)
        # Swift, the stand-in for the store, names whoever may come in ACCOUNT:USER.
        account = secrets.token_hex(6)
        access = "".join(
            f"{name}={account}:{secrets.token_hex(6)}\n" for name in ("STORE_ACCESS_KEY", "STORE_ADMIN_ACCESS_KEY")
        )
        (self.server / ".env").write_text((earlier / "server" / ".env").read_text() if earlier else access)
        for name in WORKERS:
            self.run(sys.executable, "include/compose/make_secrets.py", "--hosts", "127.0.0.1", "--worker", name)
        self.layout.state.mkdir()
        (self.layout.state / "secrets.json").write_text(json.dumps({"password": self.secret("AIRFLOW_ADMIN_PASSWORD")}))

    def secret(self, name: str) -> str:
        """A value of .env."""
        lines = (self.server / ".env").read_text().splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith(f"{name}="))

    def set_secret(self, name: str, value: str) -> None:
        """Put another value into .env."""
        path = self.server / ".env"
        others = [line for line in path.read_text().splitlines() if not line.startswith(f"{name}=")]
        path.write_text("\n".join([*others, f"{name}={value}"]) + "\n")

    def run(
        self, *command: str, cwd: Path | None = None, check: bool = True, timeout_s: float = 900, **more: Any
    ) -> Any:
        """A command in the server's checkout; what it said, both streams."""
        done = subprocess.run(
            command,
            cwd=cwd or self.server,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            **more,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
            )
        return done

    def compose(self, *words: str, **more: Any) -> Any:
        """Compose in the server's checkout."""
        return self.run(*self.compose_words, *words, **more)

    @property
    def api(self) -> AirflowApi:
        api = AirflowApi(self.layout)
        api._client = self.http("airflow")
        return api

    def http(self, name: str) -> httpx.Client:
        """A client of one of the doors, with the operator's login where the proxy asks for one."""
        authority = base64.b64decode(self.secret("TLS_AUTHORITY")).decode()
        login = ("admin", self.secret("WATCH_PASSWORD")) if name in ("prometheus", "alertmanager") else None
        context = ssl.create_default_context(cadata=authority)
        url = f"https://127.0.0.1:{PORTS[name]}"
        return httpx.Client(base_url=url, verify=context, auth=login, timeout=30, trust_env=False)

    def containers(self) -> dict[str, dict[str, Any]]:
        """Service -> what the engine says about its container."""
        names = self.run(
            "docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}"
        ).stdout.split()
        told = json.loads(self.run("docker", "inspect", *names).stdout) if names else []
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in told}

    def volumes(self) -> dict[str, str]:
        """Name -> when it was made."""
        names = self.run(
            "docker", "volume", "ls", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}"
        ).stdout
        told = json.loads(self.run("docker", "volume", "inspect", *names.split()).stdout) if names.split() else []
        return {one["Name"]: one["CreatedAt"] for one in told}

    def state(self, service: str) -> str:
        """healthy, starting, unhealthy, or how it ended."""
        found = self.containers().get(service)
        if found is None:
            return "absent"
        state = found["State"]
        if state["Status"] != "running":
            return f"{state['Status']} {state['ExitCode']}"
        return state.get("Health", {}).get("Status", "running")

    def wait_healthy(self, seconds: float = START_S) -> float:
        """Until every lasting service is healthy and the others ended well; seconds it took."""
        began = time.monotonic()
        while True:
            found = {name: self.state(name) for name in self.containers()}
            sick = {n: s for n, s in found.items() if s != ("exited 0" if n in ONCE else "healthy")}
            if found and not sick:
                return time.monotonic() - began
            if time.monotonic() - began > seconds:
                logs = "".join(self.compose("logs", "--tail=40", name).stdout[-3000:] for name in sick)
                raise TimeoutError(f"not well after {seconds:g} s: {sick}\n{logs}")
            time.sleep(2)

    def wait(self, what: str, look: Any, seconds: float = 180) -> Any:
        """What `look` finds, once it does."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come within {seconds:g} s")
            time.sleep(1)
        return found

    def get(self, name: str, path: str) -> Any:
        """JSON of one of the published ports."""
        with self.http(name) as client:
            return client.get(path).raise_for_status().json()

    def end(self) -> None:
        """Containers, networks and volumes gone."""
        if (self.server / ".env").exists():
            self.compose("down", "-v", "--remove-orphans", check=False)


class Worker:
    """`mlx-tasks worker` and other commands in a clone of their own, on this machine."""

    def __init__(self, plane: Plane, name: str) -> None:
        self.plane, self.root, self.process = plane, plane.folder / name, None
        plane.run("git", "clone", "-q", str(plane.origin), str(self.root), cwd=plane.folder)
        for key, value in (("user.name", name), ("user.email", f"{name}@example.org")):
            plane.run("git", "config", key, value, cwd=self.root)
        settings = (plane.server / f"worker-{name}.env").read_text()
        (self.root / "worker.env").write_text(settings)
        told = dict(line.split("=", 1) for line in settings.splitlines() if "=" in line and line[0] != "#")
        self.environment = {
            **plane.environment,
            **told,
            "ADO_STATE": str(self.root / ".state"),
            "ADO_REPOSITORY": str(self.root),
            "ADO_WORKER_NAME": name,
            "ADO_RETRY_DELAY_S": "1",
            "PYTHONPATH": str(self.root),
        }
        believe(self.environment)

    def command(self, *words: str, timeout_s: float = 600) -> Any:
        """One command; what came of it."""
        return subprocess.run(
            [sys.executable, "-m", "mlx_tasks", *words],
            cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip

    def start(self, *words: str, log: str) -> subprocess.Popen:
        """A command that stays, in a session of its own."""
        with (self.plane.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "mlx_tasks", *words],
                cwd=self.root, env=self.environment, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip


def end(processes: Iterable[subprocess.Popen]) -> None:
    """End sessions, gently first."""
    for process in processes:
        for number, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
            if process.poll() is None:
                os.killpg(process.pid, number)
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
