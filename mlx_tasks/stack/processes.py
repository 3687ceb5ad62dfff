"""The stack's processes as its record names them: who lives, who belongs to whom, and how just those are ended.

A part leads a session of its own, and a session keeps its number after its leader's death: so what a killed part leaves
behind is found too. A process is known by pid and start time, so that a reused pid is not taken for ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlx_tasks.files import read_json, write_json
from mlx_tasks.stack.layout import Layout

WATCHER = "watcher"
"""Name of the process that watches the others (watch.py)."""
STOP_TIMEOUT_S = 20.0
_SAME_START_S = 5.0
"""Two start times this close are one process's: the boot time that psutil adds moves when the clock is set."""
_BEFORE_BOOT_S = 60.0


@dataclass(frozen=True)
class Entry:
    """One recorded process, the leader of its session: its name for people, its pid, its start (Unix seconds)."""

    name: str
    pid: int
    born: float

    def process(self) -> psutil.Process | None:
        """The process, while it lives."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.born) < _SAME_START_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def family(self) -> dict[int, psutil.Process]:
        """pid -> process: itself, all of its session, and all that descend from these."""
        leader = self.process()
        members = [leader] if leader else []
        if leader or not self._number_is_anothers():
            members += self._session()
        found: dict[int, psutil.Process] = {}
        for member in members:
            with contextlib.suppress(psutil.Error):
                found |= {one.pid: one for one in (member, *member.children(recursive=True))}
        return found

    def _session(self) -> list[psutil.Process]:
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                ours = process.uids().real == os.getuid() and process.create_time() >= self.born - _SAME_START_S
                if ours and os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members

    def _number_is_anothers(self) -> bool:
        """Whether the pid, and with it the session's number, is in use by a process that is not ours any more.

        The system gives no pid anew while a session has it for its number.
        """
        if self.born < psutil.boot_time() - _BEFORE_BOOT_S:
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.born) >= _SAME_START_S
        except psutil.Error:
            return False


def recorded(layout: Layout) -> list[Entry]:
    """What the record names."""
    try:
        return [Entry(str(e["name"]), int(e["pid"]), float(e["born"])) for e in read_json(layout.record)["processes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def note(layout: Layout, entries: Iterable[Entry], problem: str = "") -> None:
    """Write the record: the processes, the ports they listen on, and why the watcher gave up, if it did."""
    record = {
        "processes": [{"name": e.name, "pid": e.pid, "born": e.born} for e in entries],
        "ports": layout.ports,
        "problem": problem,
    }
    write_json(layout.record, record)


def noted_problem(layout: Layout) -> str:
    """Why the watcher gave up and ended the stack, or nothing."""
    try:
        return str(read_json(layout.record).get("problem", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def entry_of(name: str, pid: int) -> Entry:
    """The entry of a process that was just started."""
    return Entry(name, pid, psutil.Process(pid).create_time())


def strays(layout: Layout) -> list[Entry]:
    """Parts of this state folder's stack that no record names, because somebody removed it under them.

    They lead sessions of their own without a terminal, run Python in the state folder, and descend from no recorded
    part.
    """
    known = {entry.pid for entry in recorded(layout) if entry.process()}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid() or os.getsid(process.pid) != process.pid or process.terminal():
                continue
            where = process.cwd().removesuffix(" (deleted)")
            ours = where == str(layout.state) and Path(process.exe()).name.startswith("python")
            ours = ours and process.pid != os.getpid()
            if ours and not known & {process.pid, *(parent.pid for parent in process.parents())}:
                found.append(Entry(f"unrecorded process {process.pid}", process.pid, process.create_time()))
    return found


def end(entries: Iterable[Entry], say: Callable[[str], None] = lambda text: None) -> int:
    """End the entries' families: SIGTERM to the leaders, then to whatever outlived them, then SIGKILL.

    Returns how many processes were ended.
    """
    entries = list(entries)
    leaders = [process for entry in entries if (process := entry.process())]
    family: dict[int, psutil.Process] = {}
    for entry in entries:
        family |= entry.family()
    if family:
        say(f"ending {len(family)} processes")
    leaders_left = _signal(leaders, psutil.Process.terminate, STOP_TIMEOUT_S)
    for entry in entries:  # what was started meanwhile
        family |= entry.family()
    left = _signal([p for p in family.values() if p not in leaders], psutil.Process.terminate, 3.0)
    _signal([*leaders_left, *left], psutil.Process.kill, 5.0)
    return len(family)


def _signal(
    processes: list[psutil.Process], how: Callable[[psutil.Process], None], wait_s: float
) -> list[psutil.Process]:
    """End processes in one way; those that live on after `wait_s`."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            how(process)
    return psutil.wait_procs(processes, timeout=wait_s)[1]
