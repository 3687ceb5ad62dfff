"""The embedded stack's components: their commands, their environment, and how each says that it is well."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from mlx_tasks.stack.layout import HOST, Layout
from mlx_tasks.stack.secrets import USER, load_secrets, write_passwords

# The log servers would listen on every interface, on fixed ports; the API server reads the same disk.
AIRFLOW_COMPONENTS = (
    ("api-server", ()),
    ("scheduler", ("--skip-serve-logs",)),
    ("dag-processor", ()),
    ("triggerer", ("--skip-serve-logs",)),
)


@dataclass(frozen=True)
class Service:
    """One process of the stack: a name for people and logs, and the command that runs it."""

    name: str
    command: tuple[str, ...]


def services(layout: Layout) -> list[Service]:
    """What runs, in the order in which it is started."""
    binaries = os.path.dirname(sys.executable)
    database = layout.state / "mlflow" / "mlflow.db"
    mlflow = Service(
        "mlflow",
        (
            f"{binaries}/mlflow", "server", "--host", HOST, "--port", str(layout.mlflow_port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{database}",
            "--artifacts-destination", str(layout.state / "mlflow" / "artifacts"), "--serve-artifacts",
        ),
    )  # fmt: skip
    airflow = [Service(name, (f"{binaries}/airflow", name, *options)) for name, options in AIRFLOW_COMPONENTS]
    return [mlflow, *airflow]


def environment(layout: Layout) -> dict[str, str]:
    """The environment of every component and of every task they start."""
    secrets = load_secrets(layout.state)
    passwords = write_passwords(layout.airflow_home, secrets["password"])
    binaries = os.path.dirname(sys.executable)
    settings = {
        "CORE__DAGS_FOLDER": layout.root / "dags",
        "CORE__PLUGINS_FOLDER": layout.root / "plugins",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__PARALLELISM": 4,  # LocalExecutor forks that many idle workers
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
        "CORE__FERNET_KEY": secrets["fernet_key"],
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
        "CORE__EXECUTION_API_SERVER_URL": f"{layout.airflow_url}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{layout.airflow_home / 'airflow.db'}",
        "API__HOST": HOST,
        "API__PORT": layout.airflow_port,
        "API__BASE_URL": layout.airflow_url,
        "API__WORKERS": 1,
        "API__SECRET_KEY": secrets["api_secret_key"],
        "API_AUTH__JWT_SECRET": secrets["jwt_secret"],
        "API_AUTH__JWT_EXPIRATION_TIME": 7 * 24 * 3600,
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.5,
        # A scheduler that was killed leaves tasks behind; the default looks for them every five minutes.
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 15,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 30,
        # A task outlives an API server that restarts; the default gives it under a minute.
        "WORKERS__MAX_FAILED_HEARTBEATS": 120,
        "LOGGING__BASE_LOG_FOLDER": layout.airflow_home / "logs",
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    return {
        **{key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"},
        **{f"AIRFLOW__{key}": str(value) for key, value in settings.items()},
        "AIRFLOW_HOME": str(layout.airflow_home),
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(p for p in (str(layout.root), os.environ.get("PYTHONPATH")) if p),
        "PYTHONUNBUFFERED": "1",
        "ADO_ALERT_TOKEN": secrets["alert_token"],
        "ADO_ALERT_SECRET": secrets["alert_secret"],
        "ADO_SERVER_URL": os.environ.get("ADO_SERVER_URL", layout.server_url),
        "ADO_STATE": str(layout.state),
        "ADO_REPOSITORY": str(layout.root),
        "MLFLOW_TRACKING_URI": layout.mlflow_url,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # macOS: a forked child of a process that touched Objective-C dies without this.
        "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
        "no_proxy": "*",
    }
