"""`mlx-tasks monitor`: a window of served images against a bundle's registered reference."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this package's command to the CLI's subparsers."""
    monitor = commands.add_parser("monitor", help="compare served images with the bundle's registered reference")
    monitor.add_argument("--window", type=Path, required=True, help="what `mlx-tasks serve --window` fills")
    source = monitor.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, help="a bundle's folder")
    source.add_argument("--model", help="NAME@ALIAS or NAME/VERSION in MLflow's registry")
    monitor.add_argument("--level", type=float, default=0.01, help="chance of a false alert in a look")
    monitor.add_argument("--permutations", type=int, default=1999, help="behind each p value")
    monitor.add_argument("--min-images", type=int, default=60, help="below it images wait for the next look")
    monitor.add_argument("--max-error-share", type=float, default=0.02, help="of requests that may fail")
    monitor.add_argument("--max-latency-ms", type=float, default=0.0, help="for 95 of 100 requests; 0: no limit")
    monitor.add_argument("--cooldown-h", type=float, default=6.0, help="hours in which an alert is not raised again")
    monitor.add_argument("--token", default="", help="names this look; the same again prints the same report")
    monitor.add_argument("--seed", type=int, default=0, help="of the exchanges behind the p values")
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
            arguments.min_images,
            max_error_share=arguments.max_error_share,
            max_latency_ms=arguments.max_latency_ms,
            cooldown_s=3600.0 * arguments.cooldown_h,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise DataError(str(error)) from None
    with open_source(arguments) as (folder, name, version, _):
        report = monitor(arguments.window, folder, rules, arguments.token, version=version if arguments.model else "")
    print(json.dumps(report | {"name": name, "version": version}, allow_nan=False))
    return 0
