"""`mlx-tasks monitor`: a window of served images against a bundle's registered reference."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this package's command to the CLI's subparsers."""
    monitor = commands.add_parser("monitor", help="compare served images with the bundle's registered reference")
    monitor.add_argument("--window", type=Path, required=True, help="a folder of served PNGs")
    source = monitor.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, help="a bundle's folder")
    source.add_argument("--model", help="NAME@ALIAS or NAME/VERSION in MLflow's registry")
    monitor.add_argument("--level", type=float, default=0.01, help="false alarms of the drift test, as a share")
    monitor.add_argument("--permutations", type=int, default=499, help="behind the drift test's p value")
    monitor.add_argument("--max-quality-loss", type=float, default=0.5, help="rise of the Frechet distance, a fraction")
    monitor.add_argument("--min-images", type=int, default=32, help="images below which nothing is measured")
    monitor.add_argument("--seed", type=int, default=0)
    monitor.set_defaults(command=_monitor)


def _monitor(arguments: argparse.Namespace) -> int:
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.errors import DataError
    from mlx_tasks.monitoring.monitor import Rules, monitor
    from mlx_tasks.serving.commands import open_source

    try:
        rules = Rules(
            arguments.level,
            arguments.permutations,
            arguments.max_quality_loss,
            arguments.min_images,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise DataError(str(error)) from None
    with open_source(arguments) as (folder, name, version, _):
        report = monitor(arguments.window, folder, rules)
    print(json.dumps(report | {"name": name, "version": version}, allow_nan=False))
    return 0
