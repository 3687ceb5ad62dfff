"""A process that must not outlive whoever started it.

Airflow gives a task five seconds between SIGTERM and SIGKILL, and a SIGKILL tells nobody. So a stage looks for its
parents itself: those that MLX_TASKS_PARENT names ("pid:create_time", comma separated) and the one the system gave it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable

import psutil

from mlx_tasks.errors import ExitCode

PARENT_VARIABLE = "MLX_TASKS_PARENT"
POLL_S = 0.5
_SAME_START_S = 5.0
"""Two start times this close are one process's: the boot time that psutil adds moves when the clock is set."""


def identity(pid: int | None = None) -> str:
    """A process as "pid:create_time" (Unix seconds), this one by default: a reused pid is not taken for it."""
    process = psutil.Process(pid)
    return f"{process.pid}:{process.create_time():.2f}"


def parents_for_child() -> str:
    """What a child's MLX_TASKS_PARENT must hold: this process, and all that this one must not outlive."""
    return ",".join(filter(None, [os.environ.get(PARENT_VARIABLE, ""), identity()]))


class ParentWatch:
    """Polls the parents from a daemon thread; when one is gone, kills this process's children and ends it.

    The parent given by the system counts unless SIGHUP is ignored: `nohup` asks to outlive it.
    """

    def __init__(self, on_orphaned: Callable[[str], None] = lambda reason: None, poll_s: float = POLL_S) -> None:
        self._on_orphaned = on_orphaned
        self._poll_s = poll_s
        self._named = list(_named_parents(os.environ.get(PARENT_VARIABLE, "")))
        self._parent = None if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else os.getppid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="parent-watch", daemon=True)

    def __enter__(self) -> ParentWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()

    def orphaned(self) -> str | None:
        """Who is gone, in words, or None while every parent lives."""
        for text, process in self._named:
            if process is None or not _lives(process):
                return f"process {text.partition(':')[0]} ({PARENT_VARIABLE}) is gone"
        if self._parent is not None and os.getppid() != self._parent:
            return f"the parent process {self._parent} is gone"
        return None

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            reason = self.orphaned()
            if reason is None:
                continue
            kill_children()
            with contextlib.suppress(Exception):
                self._on_orphaned(reason)
            os._exit(ExitCode.INTERRUPTED)


def kill_children() -> None:
    """SIGKILL every descendant of this process."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()


def _named_parents(text: str) -> Iterable[tuple[str, psutil.Process | None]]:
    for part in filter(None, (p.strip() for p in text.split(","))):
        pid, _, born = part.partition(":")
        try:
            process = psutil.Process(int(pid))
            same = not born or abs(process.create_time() - float(born)) < _SAME_START_S
        except psutil.Error:
            yield part, None
            continue
        except ValueError:
            raise ValueError(f"{PARENT_VARIABLE} is 'pid:create_time', comma separated, got {text!r}") from None
        yield part, process if same else None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
