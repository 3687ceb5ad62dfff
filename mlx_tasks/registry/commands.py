"""Commands about registered models: regress, history."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    command = commands.add_parser("regress", help="does a registered model still draw what it drew, as well as then?")
    command.add_argument("model", nargs="?", help="NAME@champion, NAME/VERSION (default: the params' model's champion)")
    command.add_argument("--bundle", type=Path, help="a bundle's folder instead of a registered model")
    command.add_argument("--dataset", type=Path, help="a work/dataset folder: score at each of its resolutions as well")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.set_defaults(command=_regress)
    command = commands.add_parser("history", help="who made which version champion or put it into service, and why")
    command.add_argument("model", nargs="?", help="a registered model (default: the params')")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(command=_history)


def _regress(arguments: argparse.Namespace) -> int:
    """0 where every check passes, 1 else."""
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.registry.regression import across_resolutions, check_bundle

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.bundle or _download(arguments.model, Path(temporary))
        bundle = read_bundle(folder)

        def tell(text: str) -> None:
            if not arguments.json:
                print(f"regress: {text}", flush=True)

        checks = check_bundle(folder, bundle, tell)
        rows = across_resolutions(bundle, _splits(arguments.dataset), tell) if arguments.dataset else []
    passed = all(check.passed for check in checks)
    if arguments.json:
        told = {"passed": passed, "checks": [check.as_dict() for check in checks], "resolutions": rows}
        print(json.dumps(told, indent=2))
    else:
        _print(checks, rows)
    return 0 if passed else 1


def _history(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mlx_tasks.errors import DataError
    from mlx_tasks.params import load_config
    from mlx_tasks.registry.history import history
    from mlx_tasks.registry.mlflow_registry import Registry
    from mlx_tasks.registry.model_name import with_model_name
    from mlx_tasks.tracking.rest import tracking_uri

    uri = tracking_uri()
    if uri is None:
        raise DataError("no registry: set MLFLOW_TRACKING_URI")
    model = arguments.model or with_model_name(load_config(Path.cwd()), Path.cwd()).register_.model_name
    registry = Registry(uri)
    registry.aliases(model)  # a name that leads nowhere is told
    events = [asdict(event) for event in history(registry, model)]
    if arguments.json:
        print(json.dumps(events, indent=2))
    elif not events:
        print(f"nothing of {model} was promoted or deployed yet")
    for event in events if not arguments.json else ():
        after = f" after version {event['before']}" if event["before"] else ""
        version = f"version {event['version']}" if event["version"] else "nothing"
        print(f"{event['at']}  {event['what']}: {version}{after}  by {event['who']}  run {event['run'] or 'by hand'}")
        if event["why"]:
            print(f"    {event['why']}")
    return 0


def _download(model: str | None, folder: Path) -> Path:
    from mlx_tasks.errors import DataError
    from mlx_tasks.params import load_config
    from mlx_tasks.registry.mlflow_registry import Registry
    from mlx_tasks.registry.model_name import with_model_name
    from mlx_tasks.tracking.rest import tracking_uri

    uri = tracking_uri()
    if uri is None:
        raise DataError("no registry: set MLFLOW_TRACKING_URI, or give a folder with --bundle")
    registry = Registry(uri)
    reference = model or f"{with_model_name(load_config(Path.cwd()), Path.cwd()).register_.model_name}@champion"
    return registry.download(registry.resolve(reference), folder)


def _splits(dataset: Path) -> dict[int, Any]:
    from mlx_tasks.data.loader import load_split
    from mlx_tasks.errors import DataError

    sides = sorted(int(path.stem) for path in (dataset / "images").glob("*.npy") if path.stem.isdigit())
    if not sides:
        raise DataError(f"{dataset} holds no images/RESOLUTION.npy: give the validate stage's work/dataset")
    return {side: load_split(dataset, side, "test") for side in sides}


def _print(checks: list[Any], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mlx_tasks.report.svg import number

    console, table = Console(), Table(title="Regression of a stored bundle", title_justify="left")
    for name in ("check", "found", "rule", "holds"):
        table.add_column(name)
    for check in checks:
        table.add_row(check.name, number(check.value), check.rule, "✓ yes" if check.passed else "✗ no")
    console.print(table)
    if rows:
        table = Table(title="Across resolutions", title_justify="left")
        for name in ("pixels", "Frechet distance", "real images", "times real", "images"):
            table.add_column(name, justify="right")
        for row in rows:
            values = (row["frechet_distance"], row["real"], row["times_real"])
            table.add_row(str(row["resolution"]), *(number(value) for value in values), str(row["samples"]))
        console.print(table)
