"""The fleet's commands: worker, doctor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    worker = commands.add_parser("worker", help="take tasks of a control plane elsewhere, one at a time")
    worker.add_argument("--name", help="under which the control plane knows it (default: this host's)")
    worker.add_argument("--no-checks", action="store_true", help="start even if the doctor finds something wrong")
    worker.set_defaults(command=_worker)
    doctor = commands.add_parser("doctor", help="name what keeps a worker or a control plane from working")
    doctor.add_argument("--side", choices=("worker", "server"), default="worker", help="whose surroundings to look at")
    doctor.set_defaults(command=_doctor)
    for command in (worker, doctor):
        command.add_argument("--env", type=Path, help="a file of settings, such as worker.env or .env")


def _worker(arguments: argparse.Namespace) -> int:
    import os

    from mlx_tasks.environment_file import take_env_file
    from mlx_tasks.errors import ExitCode
    from mlx_tasks.fleet.doctor import examine, tell
    from mlx_tasks.fleet.settings import NAME_VARIABLE, WorkerSettings
    from mlx_tasks.fleet.worker import work

    if arguments.env:
        take_env_file(arguments.env)
    if arguments.name:
        os.environ[NAME_VARIABLE] = arguments.name
    settings = WorkerSettings.from_environment()
    if not arguments.no_checks and tell(examine(settings)):
        print("worker: not started; mend what is wrong, or --no-checks", flush=True)
        return int(ExitCode.UNAVAILABLE)

    def problems() -> list[str]:
        found = [] if arguments.no_checks else examine(settings)
        return [f"{one.check}: {' '.join(one.told.split())}" for one in found if one.state == "wrong"]

    return work(settings, problems)


def _doctor(arguments: argparse.Namespace) -> int:
    import os

    from mlx_tasks.environment_file import take_env_file
    from mlx_tasks.errors import DataError
    from mlx_tasks.fleet.checks import fleet
    from mlx_tasks.fleet.doctor import examine, tell
    from mlx_tasks.fleet.settings import WorkerSettings

    if arguments.env:
        take_env_file(arguments.env)
    if arguments.side == "worker":
        return tell(examine(WorkerSettings.from_environment()))
    password = os.environ.get("AIRFLOW_ADMIN_PASSWORD")
    if not password:
        raise DataError("AIRFLOW_ADMIN_PASSWORD is not set: --env .env, the control plane's own")
    return tell(fleet(own_address(), password))


def own_address() -> str:
    """Airflow's address on the server itself: through the proxy, whose authority is believed, where .env has one."""
    import os

    from mlx_tasks.fleet.settings import SERVER_VARIABLE
    from mlx_tasks.trust import AUTHORITY_VARIABLE, believe

    if os.environ.get("TLS_AUTHORITY"):
        os.environ.setdefault(AUTHORITY_VARIABLE, os.environ["TLS_AUTHORITY"])
        believe(os.environ)
    scheme = "https" if os.environ.get("TLS_CERTIFICATE") else "http"
    return os.environ.get(SERVER_VARIABLE, f"{scheme}://127.0.0.1:8080").rstrip("/")
