"""Start the stack's processes, wait until they are well, and end just those: by their own ids, never by name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from mlx_tasks.errors import BusyError, UnavailableError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.stack.layout import HOST, PORT_VARIABLES, Layout, is_free, next_free
from mlx_tasks.stack.services import environment, services

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
Say = Callable[[str], None]


@contextlib.contextmanager
def exclusive(layout: Layout, what: str) -> Iterator[None]:
    """Hold the stack's lock.  Raises: BusyError naming who holds it and what to do."""
    layout.state.mkdir(parents=True, exist_ok=True)
    path = layout.state / "demo.lock"
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


def running(layout: Layout) -> dict[str, psutil.Process]:
    """The recorded processes that live: each by its pid and its start time, so a reused pid is not taken for ours."""
    return {name: process for name, pid, born in _recorded(layout) if (process := _alive(pid, born)) is not None}


def start(layout: Layout, say: Say) -> None:
    """Bring the stack up and return once every component is well; on any failure all that was started is ended.

    Raises: BusyError where a port is taken; UnavailableError where a component ends or does not become well in time,
    with the end of its log.
    """
    alive = running(layout)
    if len(alive) == len(services(layout)) and _health(layout) == {}:
        say("the stack is up already")
        return
    if alive:
        say("parts of an earlier stack are left: ending them")
        stop(layout, say)
    _check_ports(layout)
    for folder in (layout.airflow_home, layout.logs, layout.state / "mlflow" / "artifacts"):
        folder.mkdir(parents=True, exist_ok=True)
    settings = environment(layout)
    try:
        mlflow, *airflow = services(layout)
        started = [_launch(layout, mlflow.name, mlflow.command, settings)]
        say("preparing Airflow's database")
        _migrate(layout, settings)
        started += [_launch(layout, service.name, service.command, settings) for service in airflow]
        _wait_until_well(layout, started, say)
    except BaseException:
        stop(layout, say)
        raise


def stop(layout: Layout, say: Say) -> int:
    """End every recorded process with all its descendants: SIGTERM to the components,
    then to whatever outlived them, then SIGKILL. Returns how many were ended.
    """
    roots = list(running(layout).values())
    family: dict[int, psutil.Process] = {}
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            family |= {member.pid: member for member in (root, *root.children(recursive=True))}
    if family:
        say(f"ending {len(family)} processes")
    roots_left = _end(roots, psutil.Process.terminate, STOP_TIMEOUT_S)
    left = _end([p for p in family.values() if p.is_running()], psutil.Process.terminate, 3.0)
    _end([*roots_left, *left], psutil.Process.kill, 5.0)
    layout.record.unlink(missing_ok=True)
    return len(family)


def _end(processes: list[psutil.Process], how: Callable[[psutil.Process], None], wait_s: float) -> list[psutil.Process]:
    """End processes in one way; those that live on after `wait_s`."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            how(process)
    return psutil.wait_procs(processes, timeout=wait_s)[1]


def note_run(layout: Layout, run_id: str) -> None:
    """Keep the id of the newest run, for whoever follows or ends it."""
    write_json(layout.state / "latest_run.json", {"run_id": run_id})


def noted_run(layout: Layout) -> str | None:
    """The id kept by `note_run`."""
    try:
        return str(read_json(layout.state / "latest_run.json")["run_id"])
    except (OSError, ValueError, KeyError):
        return None


def _recorded(layout: Layout) -> list[tuple[str, int, float]]:
    try:
        return [(e["name"], int(e["pid"]), float(e["born"])) for e in read_json(layout.record)["processes"]]
    except (OSError, ValueError, KeyError):
        return []


def _alive(pid: int, born: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.NoSuchProcess:
        return None


def _check_ports(layout: Layout) -> None:
    for service, port in (("airflow", layout.airflow_port), ("mlflow", layout.mlflow_port)):
        if not is_free(port):
            raise BusyError(
                f"port {port}, which {service} would listen on, is taken{_holder(port)}: end that, or choose another "
                f"port, for example {PORT_VARIABLES[service]}={next_free(port)} make demo"
            )


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _migrate(layout: Layout, settings: dict[str, str]) -> None:
    log = layout.logs / "migrate.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [Path(settings["PATH"].split(os.pathsep)[0]) / "airflow", "db", "migrate"],
            env=settings, stdout=output, stderr=subprocess.STDOUT, cwd=layout.state,
        )  # fmt: skip
    if done.returncode:
        raise UnavailableError(f"Airflow's database could not be prepared; the end of {log}:\n{tail(log)}")


def _launch(
    layout: Layout, name: str, command: tuple[str, ...], settings: dict[str, str]
) -> tuple[str, subprocess.Popen]:
    """Start one component in a process group of its own, and record it before anything else can fail."""
    with (layout.logs / f"{name}.log").open("ab") as output:
        process = subprocess.Popen(
            command, env=settings, cwd=layout.state, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    entries = [{"name": n, "pid": p, "born": b} for n, p, b in _recorded(layout)]
    entries.append({"name": name, "pid": process.pid, "born": psutil.Process(process.pid).create_time()})
    write_json(layout.record, {"processes": entries})
    return name, process


def _wait_until_well(layout: Layout, started: list[tuple[str, subprocess.Popen]], say: Say) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    told: set[str] = set()
    while True:
        for name, process in started:
            if process.poll() is not None:
                log = layout.logs / f"{name}.log"
                raise UnavailableError(f"{name} ended with {process.returncode}; the end of {log}:\n{tail(log)}")
        ill = _health(layout)
        for name in {"mlflow", "api-server", "scheduler", "dag-processor"} - set(ill) - told:
            told.add(name)
            say(f"{name} is well")
        if not ill:
            return
        if time.monotonic() > deadline:
            what = ", ".join(f"{name} ({why})" for name, why in sorted(ill.items()))
            raise UnavailableError(f"not well after {START_TIMEOUT_S:.0f} s: {what}; logs are in {layout.logs}")
        time.sleep(0.5)


def _health(layout: Layout) -> dict[str, str]:
    """Component -> what is wrong; empty when all are well."""
    ill: dict[str, str] = {}
    with httpx.Client(timeout=5, trust_env=False) as client:
        if not _answers(client, f"{layout.mlflow_url}/health"):
            ill["mlflow"] = f"no answer on {HOST}:{layout.mlflow_port}"
        try:
            health: dict[str, Any] = client.get(f"{layout.airflow_url}/api/v2/monitor/health").raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return {**ill, "api-server": "no answer", "scheduler": "not known", "dag-processor": "not known"}
    for key in ("scheduler", "dag_processor", "triggerer"):
        status = (health.get(key) or {}).get("status")
        if status != "healthy":
            ill[key.replace("_", "-")] = str(status)
    return ill


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(cannot be read: {error.strerror})"


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
