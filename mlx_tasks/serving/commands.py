"""`mlx-tasks serve` and `mlx-tasks deploy`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.errors import DataError
from mlx_tasks.workspace.paths import STATE_VARIABLE

if TYPE_CHECKING:
    from mlx_tasks.registry.mlflow_registry import Registry, Version


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    serve = commands.add_parser("serve", help="serve a bundle's images over HTTP, on loopback unless told otherwise")
    _add_source(serve).add_argument("--pointer", type=Path, help="follow a pointer file that `deploy swap` writes")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8090)
    serve.add_argument("--keep", type=Path, help="keep a copy of the newest images here, for `monitor`")
    serve.add_argument("--kept", type=int, default=2000, help="how many images --keep holds")
    serve.set_defaults(command=_serve)

    deploy = commands.add_parser("deploy", help="canary, swap, verify and roll back what a server follows")
    steps = deploy.add_subparsers(required=True, metavar="STEP")
    for name, run, text in (
        ("canary", _canary, "draw fixed seeds and compare them with the registered reference"),
        ("swap", _swap, "let the pointer name this bundle"),
        ("verify", _verify, "check what the pointer names, and a server if --url is given"),
        ("rollback", _roll_back, "let the pointer name what served before"),
    ):
        step = steps.add_parser(name, help=text)
        step.set_defaults(command=run)
        if name in ("canary", "swap"):
            _add_source(step)
        if name != "canary":
            step.add_argument("--state", type=Path, default=_state(), help="folder of the pointer and its bundles")
            step.add_argument("--token", default="", help="names this deployment; a rollback undoes its own only")
        if name == "verify":
            step.add_argument("--url", help="a server that follows the pointer")


def _add_source(parser: argparse.ArgumentParser) -> Any:
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--bundle", type=Path, help="a bundle's folder")
    group.add_argument("--model", help="NAME@ALIAS or NAME/VERSION in MLflow's registry")
    return group


def _state() -> Path:
    return Path(os.environ.get(STATE_VARIABLE) or Path.cwd() / ".state") / "serving"


def _registry() -> Registry:
    from mlx_tasks.registry.mlflow_registry import Registry
    from mlx_tasks.tracking.rest import URI_VARIABLE, tracking_uri

    uri = tracking_uri()
    if uri is None:
        raise DataError(f"--model needs {URI_VARIABLE}: set it to the MLflow server's address, or give --bundle")
    return Registry(uri)


@contextlib.contextmanager
def open_source(arguments: argparse.Namespace) -> Iterator[tuple[Path, str, str, Version | None]]:
    """(bundle folder, name, version, registered version) of --bundle or --model; a download goes with the block."""
    if arguments.bundle:
        folder = arguments.bundle.resolve()
        yield folder, folder.name, "", None
        return
    registry = _registry()
    version = registry.resolve(arguments.model)
    with tempfile.TemporaryDirectory(prefix="mlx-tasks-") as place:
        yield registry.download(version, Path(place)), version.name, version.version, version


def _serve(arguments: argparse.Namespace) -> int:
    import logging

    import uvicorn

    from mlx_tasks.serving.app import create_app
    from mlx_tasks.serving.pointer import Pointer
    from mlx_tasks.serving.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with contextlib.ExitStack() as stack:
        if arguments.pointer:
            source: Pointer | Path = arguments.pointer
        else:
            folder, name, version, _ = stack.enter_context(open_source(arguments))
            source = Pointer(name, version, str(folder))
        app = create_app(Worker(source), arguments.keep, arguments.kept)
        uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")
    return 0


def _canary(arguments: argparse.Namespace) -> int:
    from mlx_tasks.serving.deploy import canary

    with open_source(arguments) as (folder, name, version, _):
        found = canary(folder)
    print(json.dumps(asdict(found) | {"name": name, "version": version}))
    if not found.passed:
        raise DataError("the canary refused: " + "; ".join(found.reasons))
    return 0


def _swap(arguments: argparse.Namespace) -> int:
    from mlx_tasks.serving.deploy import swap

    with open_source(arguments) as (folder, name, version, registered):
        now = swap(arguments.state, folder, name, version, arguments.token)
        if registered:
            _name_serving(name, version)
    print(json.dumps(asdict(now)))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from mlx_tasks.serving.deploy import verify

    print(json.dumps(verify(arguments.state, arguments.url)))
    return 0


def _roll_back(arguments: argparse.Namespace) -> int:
    from mlx_tasks.serving.deploy import pointer_path, roll_back
    from mlx_tasks.serving.pointer import read_pointer

    path = pointer_path(arguments.state)
    undone = read_pointer(path) if path.is_file() else None
    now = roll_back(arguments.state, arguments.token or None)
    if undone and undone.version and undone != now:
        _name_serving(undone.name, now.version if now and now.name == undone.name else "")
    print(json.dumps(asdict(now) if now else None))
    return 0


def _name_serving(name: str, version: str) -> None:
    """Let the alias `serving` name a version, or nothing."""
    from mlx_tasks.registry.mlflow_registry import SERVING

    registry = _registry()
    if version:
        registry.set_alias(name, SERVING, version)
    else:
        registry.delete_alias(name, SERVING)
