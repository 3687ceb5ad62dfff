"""What makes a machine a worker of one control plane: a few settings, from the environment or a file."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_write_text
from mlx_tasks.fleet.tokens import key_id
from mlx_tasks.trust import believe
from mlx_tasks.workspace.paths import Places

SERVER_VARIABLE = "ADO_CONTROL_PLANE"
KEY_VARIABLE = "ADO_WORKER_KEY"
QUEUES_VARIABLE = "ADO_QUEUES"
NAME_VARIABLE = "ADO_WORKER_NAME"
QUEUES = ("mlx", "default")
"""What a worker takes: `mlx` computes; `default` opens and closes runs, which needs a checkout too."""
HEARTBEAT_S = 10
"""Between a worker's reports. The control plane takes one for dead after five of them."""


@dataclass(frozen=True)
class WorkerSettings:
    """One worker's settings.

    Attributes:
        control_plane: address of Airflow's API server (ADO_CONTROL_PLANE).
        key: signs what the worker sends (ADO_WORKER_KEY, base64 of PEM). The control plane knows its public half.
        mlflow: address of the tracking server (MLFLOW_TRACKING_URI).
        places: this machine's folders and remotes (ADO_STATE, ADO_REPOSITORY, ADO_DVC_REMOTE, ADO_GIT_REMOTE).
        queues: what it takes (ADO_QUEUES, comma-separated).
        name: under which the control plane knows it (ADO_WORKER_NAME, else this host's and four digits of its own).
    """

    control_plane: str
    key: str
    mlflow: str
    places: Places
    queues: tuple[str, ...]
    name: str

    @classmethod
    def from_environment(cls) -> WorkerSettings:
        """The settings of this process' environment.  Raises: DataError naming the variable and what it must be."""
        places = Places.from_environment()
        believe(os.environ)
        queues = tuple(q.strip() for q in os.environ.get(QUEUES_VARIABLE, ",".join(QUEUES)).split(",") if q.strip())
        if not queues:
            raise DataError(f"{QUEUES_VARIABLE} must name the queues a worker takes, such as {','.join(QUEUES)}")
        return cls(
            _address(SERVER_VARIABLE, "Airflow's API server"),
            _key(),
            _address("MLFLOW_TRACKING_URI", "the MLflow server"),
            places,
            queues,
            os.environ.get(NAME_VARIABLE) or default_name(places.state),
        )

    @property
    def home(self) -> Path:
        """Where the worker keeps its own files."""
        return self.places.state / "worker"

    @property
    def edge_api(self) -> str:
        """Address of the control plane's door for workers."""
        return f"{self.control_plane}/edge_worker/v1/rpcapi"

    def environment(self) -> dict[str, str]:
        """The environment of `airflow edge worker` and of the tasks it starts. It holds no database's address.

        The key goes to a file for this user alone, under the worker's folder.
        """
        atomic_write_text(self.home / "signing_key.pem", self.key, 0o600)
        settings = {
            "CORE__DAGS_FOLDER": self.places.repository / "dags",
            "CORE__PLUGINS_FOLDER": self.places.repository / "plugins",
            "CORE__LOAD_EXAMPLES": False,
            "CORE__EXECUTION_API_SERVER_URL": f"{self.control_plane}/execution/",
            # A fork of a process that has evaluated an MLX array hangs.
            "CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER": True,
            "API_AUTH__JWT_PRIVATE_KEY_PATH": self.home / "signing_key.pem",
            "API_AUTH__JWT_KID": key_id(self.key),
            "API_AUTH__JWT_SECRET": "",  # Airflow takes a key or a secret, not both
            "EDGE__API_URL": self.edge_api,
            "EDGE__API_ENABLED": True,
            "EDGE__HEARTBEAT_INTERVAL": HEARTBEAT_S,
            "EDGE__JOB_POLL_INTERVAL": 1,
            # A task computes on while the API server is away for minutes; the default gives it under one.
            "WORKERS__MAX_FAILED_HEARTBEATS": 120,
            "LOGGING__BASE_LOG_FOLDER": self.home / "logs",
            "USAGE_DATA_COLLECTION__ENABLED": False,
        }
        binaries = os.path.dirname(sys.executable)
        dropped = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC", KEY_VARIABLE}
        return {
            **{key: value for key, value in os.environ.items() if key not in dropped},
            **{f"AIRFLOW__{key}": str(value) for key, value in settings.items()},
            "AIRFLOW_HOME": str(self.home),
            "ADO_STATE": str(self.places.state),
            "ADO_REPOSITORY": str(self.places.repository),
            "ADO_QUEUE": QUEUES[0],
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")]),
            "PYTHONPATH": str(self.places.repository),
            "PYTHONUNBUFFERED": "1",
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
            "GX_ANALYTICS_ENABLED": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # macOS: a forked child of a process that touched Objective-C dies without this.
            "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
        }


def default_name(state: Path) -> str:
    """This host's name and four digits, which are drawn once for a state folder: two on one host keep apart."""
    path = state / "worker" / "id"
    try:
        digits = path.read_text().strip()
    except OSError:
        digits = secrets.token_hex(2)
        atomic_write_text(path, digits)
    return f"{socket.gethostname().split('.')[0] or 'worker'}-{digits}"


def _address(variable: str, what: str) -> str:
    text = os.environ.get(variable, "").rstrip("/")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"{variable} must be the address of {what}, such as http://127.0.0.1:8080, got {text!r}")
    return text


def _key() -> str:
    word = os.environ.get(KEY_VARIABLE, "")
    with contextlib.suppress(binascii.Error, UnicodeDecodeError):
        key = base64.b64decode(word, validate=True).decode()
        if "PRIVATE KEY" in key:
            return key
    raise DataError(
        f"{KEY_VARIABLE} must be this worker's key, as `make secrets WORKER=NAME` on the server writes it to "
        f"worker-NAME.env, got {'nothing' if not word else f'{len(word)} characters that are none'}"
    )
