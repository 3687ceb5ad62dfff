"""`mlx-tasks worker`: this machine takes tasks of a control plane elsewhere, one at a time, over HTTP alone.

It is Airflow's own edge worker, started with the settings that this project's tasks need. The first Ctrl-C lets it
finish its task; the second ends the task, which goes on from its checkpoint wherever it is taken up again. An edge
worker that ends unasked (killed, or refused for its clock) is started again once the doctor agrees.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.fleet.settings import HEARTBEAT_S, WorkerSettings
from mlx_tasks.locks import held

TAKEN = "already active"
"""What the control plane says of a name that a living worker has, or one that died less than five heartbeats ago."""
PATIENCE_S = 12 * HEARTBEAT_S
SETTLED_S = 60.0
"""A worker that the control plane never took and that ends unasked before is for a person, or a service manager."""
KILL_S = 30.0


def work(settings: WorkerSettings, problems: Callable[[], list[str]] = list) -> int:
    """Serve until told to stop; the worker's own exit code.

    problems: what stands against starting again after an end that nobody asked for; asked until there is nothing.
    Raises: BusyError where a worker of this state folder runs already; UnavailableError where the control plane keeps
        refusing it.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.home.chmod(0o700)
    lock, what = settings.home / "lock", f"the worker in {settings.places.state}"
    with held(lock, f"worker {settings.name}", what=what, wait_s=0):
        try:
            return _serve(settings, problems)
        except KeyboardInterrupt:  # between two lives, when no edge worker is there to be told
            print("\nworker: ends", flush=True)
            return 0


def _serve(settings: WorkerSettings, problems: Callable[[], list[str]]) -> int:
    """One life after the other, until the worker is told to stop or cannot serve; its exit code."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        began = time.monotonic()
        end = _once(settings)
        if end.code == 0 or end.asked:
            return end.code
        if TAKEN in end.said:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"another worker is called {settings.name}: give this one a name of its own (--name)"
                )
            print(f"worker: the name {settings.name} is still taken by its last life; waiting", flush=True)
            time.sleep(HEARTBEAT_S)
        elif not end.served and time.monotonic() - began < SETTLED_S:
            return end.code
        else:
            print(f"worker: the edge worker ended unasked (exit code {end.code}) and is started again", flush=True)
            _wait_until_fit(problems)
            deadline = time.monotonic() + PATIENCE_S


def command(settings: WorkerSettings) -> list[str]:
    """The edge worker's command line.  Raises: DataError without Airflow in this environment."""
    airflow = os.path.join(os.path.dirname(sys.executable), "airflow")
    if not os.path.exists(airflow):
        raise DataError(f"no Airflow beside {sys.executable}: make setup")
    return [
        airflow, "edge", "worker", "--queues", ",".join(settings.queues), "--concurrency", "1",
        "--edge-hostname", settings.name, "--pid", str(settings.home / "edge.pid"),
    ]  # fmt: skip


def awake_command(pid: int) -> list[str] | None:
    """What keeps a Mac from idle sleep (-i), and from sleep on mains power (-s), as long as the process lives (-w)."""
    caffeinate = shutil.which("caffeinate") if sys.platform == "darwin" else None
    return [caffeinate, "-i", "-s", "-w", str(pid)] if caffeinate else None


@dataclass(frozen=True)
class _End:
    """How a worker ended: its code and the last lines it wrote.

    asked: by a signal to this process.
    served: the control plane was seen to have taken it.
    """

    code: int
    said: str
    asked: bool
    served: bool


def _wait_until_fit(problems: Callable[[], list[str]]) -> None:
    """Return once nothing stands against a start; what does is told when it changes."""
    told: list[str] = []
    while found := problems():
        if found != told:
            print("worker: waits, for " + "; ".join(found), flush=True)
        told = found
        time.sleep(HEARTBEAT_S)


def _once(settings: WorkerSettings) -> _End:
    """Run the worker to its end."""
    taken = settings.home / "edge.pid"  # the edge worker writes it once the control plane has taken it
    taken.unlink(missing_ok=True)  # of a killed one; the lock says that none runs
    process = subprocess.Popen(
        command(settings), env=settings.environment(), cwd=settings.places.repository, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        umask=0o077,  # what it and its tasks write is this user's alone
    )  # fmt: skip
    assert process.stdout is not None
    print(
        f"worker {settings.name}: takes {', '.join(settings.queues)} from {settings.control_plane}, one at a time; "
        "Ctrl-C lets it finish its task, twice ends it",
        flush=True,
    )
    last: list[str] = []
    served = False
    with _kept_awake(process.pid), _told_to_stop(process) as asked:
        for line in process.stdout:
            if words := plain(line):
                print(words, flush=True)
            last = [*last[-40:], line]
            served = served or taken.exists()
        code = process.wait()
        return _End(code, "".join(last), bool(asked), served or taken.exists())


@contextlib.contextmanager
def _kept_awake(pid: int) -> Iterator[None]:
    """A process beside the worker, not around it: signals and the exit code are the worker's own."""
    line = awake_command(pid)
    beside = subprocess.Popen(line, stdin=subprocess.DEVNULL, start_new_session=True) if line else None
    try:
        yield
    finally:
        if beside is not None:
            beside.terminate()
            beside.wait()


def plain(line: str) -> str:
    """A line for a terminal: of a task's JSON record its time, task and words; empty for the framework's own talk."""
    text = line.rstrip("\n")
    if not text.startswith("{"):
        return text
    try:
        record = json.loads(text)
        task, words = record.get("task_id"), str(record["event"])
    except (ValueError, KeyError, AttributeError):
        return text
    if task is None or words.startswith("::") or not str(record.get("logger", "")).startswith("airflow.task"):
        return ""
    where = f"{task}[{record['map_index']}]" if record.get("map_index", -1) >= 0 else task
    return f"{str(record.get('timestamp', ''))[11:19]} {where}: {words}"


@contextlib.contextmanager
def _told_to_stop(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """First SIGINT: no new task, the one at hand is finished. The next, or SIGTERM: it ends now.

    Yields: the signals that came.
    """
    asked: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        if asked == [signal.SIGINT]:
            print("\nworker: finishes its task and ends; Ctrl-C again ends it now", flush=True)
            process.send_signal(signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_S)
            if process.poll() is None:
                process.kill()
                process.wait()
