"""`mlx-tasks ship-records`: bring to MLflow what stages recorded while it was away."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError


def add_commands(commands: Any) -> None:
    """Add this package's command to the CLI's subparsers."""
    command = commands.add_parser("ship-records", help="ship the records that wait on disk to MLflow")
    command.add_argument("--root", type=Path, default=Path.cwd(), help="the workspace (default: this folder)")
    command.set_defaults(command=_ship)


def _ship(arguments: argparse.Namespace) -> int:
    from mlx_tasks.tracking.journal import journals
    from mlx_tasks.tracking.rest import ELSEWHERE, URI_VARIABLE, tracking_uri
    from mlx_tasks.tracking.shipper import ship_records

    uri = tracking_uri()
    if uri is None:
        raise DataError(f"{URI_VARIABLE} is not set: set it to the MLflow server's address")
    shipped = ship_records(arguments.root, uri)
    for name, lines in shipped.items():
        print(f"{name}: {lines} records shipped")
    waiting = sum(len(journal.kept()) for journal in journals(arguments.root / ".run" / "records"))
    if waiting:
        raise DataError(f"{waiting} images and files still wait on disk: {ELSEWHERE}")
    if not shipped:
        print("nothing waits")
    return 0
