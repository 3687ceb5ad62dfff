"""`mlx-tasks worker`: this machine takes tasks of a control plane elsewhere, one at a time, over HTTP alone.

It is Airflow's own edge worker, started with the settings that this project's tasks need. The first Ctrl-C lets it
finish its task; the second ends the task, which goes on from its checkpoint wherever it is taken up again.
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
from collections.abc import Iterator
from types import FrameType

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.fleet.settings import HEARTBEAT_S, WorkerSettings
from mlx_tasks.locks import held

TAKEN = "already active"
"""What the control plane says of a name that a living worker has, or one that died less than five heartbeats ago."""
PATIENCE_S = 12 * HEARTBEAT_S
KILL_S = 30.0


def work(settings: WorkerSettings) -> int:
    """Serve until told to stop; the worker's own exit code.

    Raises: BusyError where a worker of this state folder runs already; UnavailableError where the control plane keeps
        refusing it.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    lock, what = settings.home / "lock", f"the worker in {settings.places.state}"
    with held(lock, f"worker {settings.name}", what=what, wait_s=0):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            code, said = _once(settings)
            if code == 0 or TAKEN not in said:
                return code
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"another worker is called {settings.name}: give this one a name of its own (--name)"
                )
            print(f"worker: the name {settings.name} is still taken by its last life; waiting", flush=True)
            time.sleep(HEARTBEAT_S)


def command(settings: WorkerSettings) -> list[str]:
    """The edge worker's command line; on macOS under `caffeinate`, which keeps the Mac awake as long as it runs.

    Raises: DataError without Airflow in this environment.
    """
    airflow = os.path.join(os.path.dirname(sys.executable), "airflow")
    if not os.path.exists(airflow):
        raise DataError(f"no Airflow beside {sys.executable}: make setup")
    line = [
        airflow, "edge", "worker", "--queues", ",".join(settings.queues), "--concurrency", "1",
        "--edge-hostname", settings.name, "--pid", str(settings.home / "edge.pid"),
    ]  # fmt: skip
    awake = shutil.which("caffeinate") if sys.platform == "darwin" else None
    return [awake, "-i", "-s", *line] if awake else line


def _once(settings: WorkerSettings) -> tuple[int, str]:
    """Run the worker to its end; its code, and the last lines it wrote."""
    (settings.home / "edge.pid").unlink(missing_ok=True)  # of a killed one; the lock says that none runs
    process = subprocess.Popen(
        command(settings), env=settings.environment(), cwd=settings.places.repository, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    print(
        f"worker {settings.name}: takes {', '.join(settings.queues)} from {settings.control_plane}, one at a time; "
        "Ctrl-C lets it finish its task, twice ends it",
        flush=True,
    )
    last: list[str] = []
    with _told_to_stop(process):
        for line in process.stdout:
            if words := plain(line):
                print(words, flush=True)
            last = [*last[-40:], line]
        return process.wait(), "".join(last)


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
def _told_to_stop(process: subprocess.Popen[str]) -> Iterator[None]:
    """First SIGINT or SIGTERM: no new task, the one at hand is finished. The next: it ends now."""
    asked = 0

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked == 1 and signum == signal.SIGINT:
            print("\nworker: finishes its task and ends; Ctrl-C again ends it now", flush=True)
            _signal(process, signal.SIGINT)
        else:
            _signal(process, signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_S)
            if process.poll() is None:
                process.kill()
                process.wait()


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To the worker itself, which is a child of caffeinate on macOS."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "darwin":
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
