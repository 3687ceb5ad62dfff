"""`mlx-tasks serve` and `mlx-tasks deploy`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.errors import DataError
from mlx_tasks.workspace.paths import STATE_VARIABLE

KEY_VARIABLE = "MLX_TASKS_SERVER_KEY"
MOST_S = 86_400
"""Of any time that a server is given."""

if TYPE_CHECKING:
    from mlx_tasks.registry.mlflow_registry import Registry, Version


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    serve = commands.add_parser("serve", help="serve a model's images over HTTP, on loopback unless told otherwise")
    _add_source(serve)
    serve.add_argument("--host", default="127.0.0.1", help="another than loopback needs a key")
    serve.add_argument("--port", type=int, default=8090, help="to listen on")
    serve.add_argument("--key-file", type=Path, help=f"holds the key that callers need; else {KEY_VARIABLE}")
    serve.add_argument("--window", type=Path, help="record what is made here, for `monitor`")
    serve.add_argument("--window-rows", type=int, default=20_000, help="images that the window holds")
    serve.add_argument(
        "--store",
        type=Path,
        default=_state() / "models",
        help="copies of registered versions (default: ADO_STATE/serving/models)",
    )
    serve.add_argument("--batch", type=int, default=32, help="rows of a network call; guidance takes two an image")
    serve.add_argument("--queue", type=int, default=256, help="work that may wait, in images drawn the model's own way")
    serve.add_argument("--timeout", type=float, default=120.0, help="seconds a request may take")
    serve.add_argument("--connections", type=int, default=512, help="open at once, at most; one address may have half")
    serve.add_argument(
        "--client-timeout", type=float, default=15.0, help="seconds for headers, a body, an unread answer"
    )
    serve.add_argument("--proxy", default="", help="address of a proxy whose X-Forwarded-For names the callers")
    serve.add_argument("--drill", help="noise:AMOUNT: damage what serves on SIGUSR1, to see whether it is noticed")
    serve.add_argument("--poll", type=float, default=2.0, help="seconds between two looks at the registry")
    serve.add_argument("--trial-memory", type=float, help="GiB that a version may take; half of the machine's if unset")
    serve.add_argument("--trial-time", type=float, default=300.0, help="seconds a new version may take to show itself")
    serve.set_defaults(command=_serve)

    deploy = commands.add_parser("deploy", help="canary, swap, verify and roll back what servers follow")
    steps = deploy.add_subparsers(required=True, metavar="STEP")
    for name, run, text in (
        ("canary", _canary, "draw fixed seeds and compare them with the registered reference"),
        ("swap", _swap, "let the alias `serving` name this version"),
        ("verify", _verify, "check what the alias names, and a server if --url is given"),
        ("rollback", _roll_back, "let the alias name what served before"),
    ):
        step = steps.add_parser(name, help=text)
        step.set_defaults(command=run)
        if name == "canary":
            _add_source(step)
        else:
            step.add_argument(
                "--model", required=True, help="NAME/VERSION or NAME@ALIAS" if name == "swap" else "its name"
            )
        if name in ("swap", "rollback"):
            step.add_argument("--token", help="names this deployment; a rollback with it undoes no other")
            step.add_argument("--why", default="", help="in words, for `mlx-tasks history`")
        if name == "verify":
            step.add_argument("--url", help=f"a server of ADO_SERVER_URL or ADO_SERVER_URLS; its key in {KEY_VARIABLE}")
            step.add_argument("--patience", type=float, default=60.0, help="seconds the server may take")


def _add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--bundle", type=Path, help="a bundle's folder")
    group.add_argument("--model", help="NAME@ALIAS or NAME/VERSION in MLflow's registry")


def _state() -> Path:
    return Path(os.environ.get(STATE_VARIABLE) or Path.cwd() / ".state") / "serving"


def _registry(instead: str = "") -> Registry:
    from mlx_tasks.registry.mlflow_registry import Registry
    from mlx_tasks.tracking.rest import URI_VARIABLE, tracking_uri

    uri = tracking_uri()
    if uri is None:
        raise DataError(f"--model needs {URI_VARIABLE}: set it to the MLflow server's address{instead}")
    return Registry(uri)


@contextlib.contextmanager
def open_source(arguments: argparse.Namespace) -> Iterator[tuple[Path, str, str, Version | None]]:
    """(bundle folder, name, version, registered version) of --bundle or --model; a download goes with the block."""
    if arguments.bundle:
        folder = arguments.bundle.resolve()
        yield folder, folder.name, "", None
        return
    registry = _registry(", or give --bundle")
    version = registry.resolve(arguments.model)
    with tempfile.TemporaryDirectory(prefix="mlx-tasks-") as place:
        yield registry.download(version, Path(place)), version.name, version.version, version


def _serve(arguments: argparse.Namespace) -> int:
    import logging

    import uvicorn

    from mlx_tasks import hardware

    hardware.prepare()  # before the imports below bring in MLX

    from mlx_tasks.monitoring.window import Recorder
    from mlx_tasks.serving.access import LEAST_KEY, loopback
    from mlx_tasks.serving.app import create_app
    from mlx_tasks.serving.connections import BACKLOG, Doors, Limits, raise_descriptors
    from mlx_tasks.serving.follower import Follower
    from mlx_tasks.serving.library import FolderSource, RegistrySource, Source
    from mlx_tasks.serving.listening import check_listening
    from mlx_tasks.serving.trial import TrialLimits, try_out
    from mlx_tasks.serving.worker import Worker
    from mlx_tasks.tracking.rest import URI_VARIABLE, tracking_uri

    for name in ("batch", "queue", "timeout", "poll", "window_rows", "connections", "client_timeout", "trial_time"):
        if not getattr(arguments, name) > 0:
            raise DataError(f"--{name.replace('_', '-')} must be above 0, got {getattr(arguments, name):g}")
    for name in ("timeout", "poll", "client_timeout", "trial_time"):
        if getattr(arguments, name) > MOST_S:
            raise DataError(f"--{name.replace('_', '-')} must be at most {MOST_S} s, got {getattr(arguments, name):g}")
    if arguments.trial_memory is not None and not arguments.trial_memory > 0:
        raise DataError(f"--trial-memory must be above 0, got {arguments.trial_memory:g}")
    limits = Limits.within(raise_descriptors(), arguments.connections, arguments.client_timeout)
    key = _key(arguments.key_file)
    if key is not None and len(key) < LEAST_KEY:
        raise DataError(f"the key must have at least {LEAST_KEY} characters, it has {len(key)}")
    if key is None and not loopback(arguments.host):
        raise DataError(
            f"--host {arguments.host} can be reached from other machines, which takes a key: give --key-file, or set "
            f"{KEY_VARIABLE}"
        )
    if arguments.bundle:
        source: Source = FolderSource(arguments.bundle)
    else:
        uri = tracking_uri()
        if uri is None:
            raise DataError(f"--model needs {URI_VARIABLE}: set it to the MLflow server's address, or give --bundle")
        source = RegistrySource(uri, arguments.model, arguments.store)
    check_listening(arguments.host, arguments.port)
    if arguments.window:
        try:
            arguments.window.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--window {arguments.window} must be a folder to write to: {error.strerror}") from None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    worker = Worker(arguments.queue)
    trial_limits = TrialLimits(arguments.trial_time, int((arguments.trial_memory or 0) * 2**30))
    trial = functools.partial(try_out, limits=trial_limits)
    follower = Follower(worker, source, arguments.poll, arguments.batch, trial)
    recorder = Recorder(arguments.window, arguments.window_rows) if arguments.window else None
    if arguments.drill:
        from mlx_tasks.serving.drill import parse_drill

        drill = parse_drill(arguments.drill)
        signal.signal(signal.SIGUSR1, lambda *_: worker.do(drill))
    # With a key a proxy may call it by any name; without, only this machine's names count.
    hosts = frozenset() if key else frozenset({"localhost", "127.0.0.1", "::1", arguments.host})
    app = create_app(worker, follower, recorder, key, hosts, arguments.timeout, arguments.client_timeout)
    # uvicorn ends well on these and then sends them to the process again, which is to exit with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    print(f"serving at http://{arguments.host}:{arguments.port}", file=sys.stderr, flush=True)
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level="error",  # what a client does wrong is told to the client
        loop="asyncio",
        http=Doors(limits),  # type: ignore[arg-type]  # called as a protocol's class is
        ws="none",
        proxy_headers=bool(arguments.proxy),
        forwarded_allow_ips=arguments.proxy or None,
        backlog=BACKLOG,
        timeout_keep_alive=int(limits.idle_s),
        timeout_graceful_shutdown=30,
        server_header=False,
    )
    return 0


def _key(path: Path | None) -> str | None:
    """The key of a file, or of the environment.  Raises: DataError for a file that holds none."""
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--key-file {path} cannot be read: {error}") from None
    if not key:
        raise DataError(f"--key-file {path} is empty")
    return key


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

    registry = _registry()
    version = registry.resolve(arguments.model)
    print(json.dumps(asdict(swap(registry, version.name, version.version, arguments.token or "", arguments.why))))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from mlx_tasks.serving.addresses import check_address
    from mlx_tasks.serving.deploy import verify

    key = os.environ.get(KEY_VARIABLE) or None
    url = check_address(arguments.url, key, os.environ) if arguments.url else None
    print(json.dumps(verify(_registry(), arguments.model, url, arguments.patience, key)))
    return 0


def _roll_back(arguments: argparse.Namespace) -> int:
    from mlx_tasks.serving.deploy import roll_back

    serving = roll_back(_registry(), arguments.model, arguments.token, arguments.why)
    print(json.dumps({"name": arguments.model, "version": serving}))
    return 0
