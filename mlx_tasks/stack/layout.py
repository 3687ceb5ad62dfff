"""Where the embedded stack keeps things: one ignored folder, and the ports it listens on."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from mlx_tasks.errors import DataError

PORT_VARIABLES = {"airflow": "ADO_AIRFLOW_PORT", "mlflow": "ADO_MLFLOW_PORT", "server": "ADO_SERVER_PORT"}
DEFAULT_PORTS = {"airflow": 8080, "mlflow": 5050, "server": 8090}
HOST = "127.0.0.1"
STATE, RECORD = ".state", "stack.json"


@dataclass(frozen=True)
class Layout:
    """Folders and addresses of one checkout's stack.

    Attributes:
        root: the checkout.
        state: the one folder that holds all state (ADO_STATE, or `.state` in the checkout).
        airflow_port, mlflow_port, server_port: loopback ports (ADO_AIRFLOW_PORT, ADO_MLFLOW_PORT, ADO_SERVER_PORT;
            where unset, those of the stack that is up).
    """

    root: Path
    state: Path
    airflow_port: int
    mlflow_port: int
    server_port: int

    @classmethod
    def of(cls, root: Path) -> Layout:
        """The layout of a checkout.  Raises: DataError on a port that is no port."""
        root = root.resolve()
        state = Path(os.environ.get("ADO_STATE") or root / STATE).resolve()
        noted = noted_ports(state)
        return cls(root, state, *(_port(service, noted) for service in ("airflow", "mlflow", "server")))

    @property
    def ports(self) -> dict[str, int]:
        """Service -> port."""
        return {"airflow": self.airflow_port, "mlflow": self.mlflow_port, "server": self.server_port}

    @property
    def airflow_url(self) -> str:
        return f"http://{HOST}:{self.airflow_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def server_url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    @property
    def airflow_home(self) -> Path:
        return self.state / "airflow"

    @property
    def logs(self) -> Path:
        """Folder of each component's output."""
        return self.state / "logs"

    @property
    def record(self) -> Path:
        """File that names the processes started, so that `make down` can end just those."""
        return self.state / RECORD


def noted_ports(state: Path) -> dict[str, int]:
    """The ports that the stack in a state folder was started on; empty where none was, or `make down` ended it."""
    try:
        ports = json.loads((state / RECORD).read_text(encoding="utf-8")).get("ports", {})
        return {service: int(port) for service, port in ports.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def private_folder(folder: Path) -> Path:
    """The folder, made if need be, for its owner's eyes alone; one that a person made keeps its mode."""
    if not folder.parent.exists():
        private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.name == STATE and folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)  # one from before was open to all
    return folder


def _port(service: str, noted: dict[str, int]) -> int:
    variable = PORT_VARIABLES[service]
    text = os.environ.get(variable) or str(noted.get(service, DEFAULT_PORTS[service]))
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise DataError(f"{variable} must be a port from 1024 to 65535, got {text!r}")
    return int(text)


def is_free(port: int) -> bool:
    """Whether nothing listens on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def next_free(port: int) -> int:
    """The first free loopback port above `port`."""
    return next(p for p in range(port + 1, 65536) if is_free(p))
