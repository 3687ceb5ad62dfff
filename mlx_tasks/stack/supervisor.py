"""Bring the stack up, part by part, until all of it is well; end just that: by its processes' own ids, never by name.

What an earlier stack left is used as far as it lives: parts that run are kept, dead ones are started again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil

from mlx_tasks.errors import BusyError, UnavailableError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.locks import held
from mlx_tasks.stack.health import ill_parts, tail
from mlx_tasks.stack.layout import PORT_VARIABLES, Layout, is_free, next_free, noted_ports, private_folder
from mlx_tasks.stack.processes import WATCHER, Entry, end, entry_of, note, recorded, strays
from mlx_tasks.stack.services import Service, environment, services

START_TIMEOUT_S = 180.0
MIGRATION_TIMEOUT_S = 600.0
MENDS_ITSELF_S = 30.0
"""A stack whose parts all run and that is not well: how long that may pass by itself."""
Say = Callable[[str], None]


@contextlib.contextmanager
def exclusive(layout: Layout, what: str) -> Iterator[None]:
    """Hold the lock that one demo at a time has.  Raises: BusyError naming who holds it and what to do."""
    path = private_folder(layout.state) / "demo.lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise BusyError(
                f"{holder} is at work here: watch it with `make follow`, or end it with `make down` and try again"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"{what} (pid {os.getpid()})")
        lock.flush()
        yield


def turn(layout: Layout, what: str, say: Say, wait_s: float | None = None) -> AbstractContextManager[None]:
    """Start and end the stack one after the other.  Raises: BusyError after `wait_s` seconds."""
    lock = private_folder(layout.state) / "stack.lock"
    return held(lock, what, what="the embedded stack", wait_s=wait_s, say=say)


def running(layout: Layout) -> dict[str, psutil.Process]:
    """The recorded processes that live, by name; the watcher is not among them."""
    found = {entry.name: entry.process() for entry in recorded(layout) if entry.name != WATCHER}
    return {name: process for name, process in found.items() if process is not None}


def watched(layout: Layout) -> bool:
    """Whether the watcher lives."""
    return any(entry.name == WATCHER and entry.process() for entry in recorded(layout))


def start(layout: Layout, say: Say) -> None:
    """Bring the stack up and return once every component is well; on any failure all of it is ended.

    Raises: BusyError where a port is taken; UnavailableError where a component ends or does not become well in time,
    with the end of its log.
    """
    alive = running(layout)
    if alive:
        _check_same_ports(layout)
    if len(alive) == len(services(layout)) and watched(layout) and not ill_parts(layout):
        say("the stack is up already")
        return
    kept = _keep_what_is_well(layout, say)
    missing = [service for service in services(layout) if service.name not in {entry.name for entry in kept}]
    _check_ports(layout, {service.name for service in missing})
    for folder in (layout.airflow_home, layout.logs, layout.state / "mlflow" / "artifacts"):
        private_folder(folder)
    settings = environment(layout)
    try:
        started = []
        airflow_lives = any(entry.name != "mlflow" for entry in kept)
        for service in missing:
            if service.name != "mlflow" and not airflow_lives:
                say("preparing Airflow's database")
                _migrate(layout, settings)
                airflow_lives = True
            started.append(_launch(layout, service.name, service.command, settings))
        _wait_until_well(layout, started, say)
        start_watcher(layout)
    except BaseException:
        stop(layout, say)
        raise


def stop(layout: Layout, say: Say) -> int:
    """End every recorded process with its session and all its descendants; the watcher first, which would start them
    again. Returns how many were ended.
    """
    ended = end([entry for entry in recorded(layout) if entry.name == WATCHER])
    ended += end([*(entry for entry in recorded(layout) if entry.name != WATCHER), *strays(layout)], say)
    layout.record.unlink(missing_ok=True)
    return ended


def take_down(layout: Layout, say: Say) -> int:
    """`stop`, after whoever starts the stack just now, if that does not take long; a start under way then fails."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(BusyError):
            stack.enter_context(turn(layout, "an end of the stack", say, wait_s=5.0))
        return stop(layout, say)


def start_watcher(layout: Layout) -> None:
    """Let a process of its own watch the parts (watch.py) until `stop` ends it."""
    variables = {PORT_VARIABLES[service]: str(port) for service, port in layout.ports.items()}
    command = (sys.executable, "-m", "mlx_tasks.stack.watch", str(layout.root))
    _launch(layout, WATCHER, command, {**os.environ, **variables, "ADO_STATE": str(layout.state)})


def note_run(layout: Layout, run_id: str) -> None:
    """Keep the id of the newest run, for whoever follows or ends it."""
    write_json(layout.state / "latest_run.json", {"run_id": run_id})


def noted_run(layout: Layout) -> str | None:
    """The id kept by `note_run`."""
    try:
        return str(read_json(layout.state / "latest_run.json")["run_id"])
    except (OSError, ValueError, KeyError):
        return None


def _keep_what_is_well(layout: Layout, say: Say) -> list[Entry]:
    """Of an earlier stack: the entries of parts that go on; the rest of it is ended, with what dead parts left."""
    entries = recorded(layout)
    end([entry for entry in entries if entry.name == WATCHER])
    parts = [entry for entry in entries if entry.name != WATCHER]
    names = {service.name for service in services(layout)}
    kept = [entry for entry in parts if entry.name in names and entry.process()]
    if len(kept) == len(names):
        say("the stack is up; waiting until it is well")
        deadline = time.monotonic() + MENDS_ITSELF_S
        while (ill := ill_parts(layout)) and time.monotonic() < deadline:
            time.sleep(0.5)
        if "api-server" in ill:  # nobody knows of the others
            ill = {name: why for name, why in ill.items() if name in ("api-server", "mlflow")}
        kept = [entry for entry in kept if entry.name not in ill]
    lost = [*(entry for entry in parts if entry not in kept), *strays(layout)]
    if lost:
        say("of an earlier stack these are not well and are started again: " + ", ".join(e.name for e in lost))
        end(lost)
    if kept or lost:
        note(layout, kept)
    return kept


def _check_same_ports(layout: Layout) -> None:
    for service, port in noted_ports(layout.state).items():
        if port != layout.ports.get(service, port) and service != "server":
            raise BusyError(
                f"the stack that is up has {service} on port {port}, and {PORT_VARIABLES[service]} asks for "
                f"{layout.ports[service]}: unset it, or end that stack first (`make down`)"
            )


def _check_ports(layout: Layout, missing: set[str]) -> None:
    for service, part, port in (
        ("airflow", "api-server", layout.airflow_port),
        ("mlflow", "mlflow", layout.mlflow_port),
    ):
        if part in missing and not is_free(port):
            raise BusyError(
                f"port {port}, which {service} would listen on, is taken{_holder(port)}: end that, or choose another "
                f"port, for example {PORT_VARIABLES[service]}={next_free(port)} make demo"
            )


def _holder(port: int) -> str:
    """Who listens on a port, and where a stack of this project, whose."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                told = f" by {process.name()} (pid {connection.pid})"
                with contextlib.suppress(psutil.Error):
                    told += _whose(process)
                return told
    return ""


def _whose(process: psutil.Process) -> str:
    """Parts of a stack have its state folder for theirs, and its own record names them."""
    for one in (process, *process.parents()):
        folder = Path(one.cwd().removesuffix(" (deleted)"))
        if (folder / "airflow").is_dir() and (folder / "logs").is_dir():
            return f", a part of the stack whose state is {folder}: `make down` in its checkout ends it"
    return ""


def _migrate(layout: Layout, settings: dict[str, str]) -> None:
    log = layout.logs / "migrate.log"
    command = [Path(settings["PATH"].split(os.pathsep)[0]) / "airflow", "db", "migrate"]
    try:
        with log.open("wb") as output:
            done = subprocess.run(
                command, env=settings, stdout=output, stderr=subprocess.STDOUT, cwd=layout.state, umask=0o077,
                timeout=MIGRATION_TIMEOUT_S,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnavailableError(
            f"Airflow's database was not ready after {MIGRATION_TIMEOUT_S:.0f} s; the end of {log}:\n{tail(log)}"
        ) from None
    if done.returncode:
        raise UnavailableError(f"Airflow's database could not be prepared; the end of {log}:\n{tail(log)}")


def _launch(
    layout: Layout, name: str, command: tuple[str, ...], settings: dict[str, str]
) -> tuple[str, subprocess.Popen]:
    """Start one component in a session of its own, and record it before anything else can fail.

    What it and its children write is their owner's alone.
    """
    log = os.open(layout.logs / f"{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, env=settings, cwd=layout.state, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, umask=0o077,
        )  # fmt: skip
    note(layout, [*(e for e in recorded(layout) if e.name != name), entry_of(name, process.pid)])
    return name, process


def launch_again(layout: Layout, service: Service) -> subprocess.Popen:
    """Start a part whose last life is over."""
    return _launch(layout, service.name, service.command, environment(layout))[1]


def _wait_until_well(layout: Layout, started: list[tuple[str, subprocess.Popen]], say: Say) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    told: set[str] = set()
    while True:
        for name, process in started:
            if process.poll() is not None:
                log = layout.logs / f"{name}.log"
                raise UnavailableError(f"{name} ended with {process.returncode}; the end of {log}:\n{tail(log)}")
        ill = ill_parts(layout)
        for name in {"mlflow", "api-server", "scheduler", "dag-processor"} - set(ill) - told:
            told.add(name)
            say(f"{name} is well")
        if not ill:
            return
        if time.monotonic() > deadline:
            what = ", ".join(f"{name} ({why})" for name, why in sorted(ill.items()))
            raise UnavailableError(f"not well after {START_TIMEOUT_S:.0f} s: {what}; logs are in {layout.logs}")
        time.sleep(0.5)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt inside the block, so that one clean-up path serves all three."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
