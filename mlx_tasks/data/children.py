"""A function over many items, in processes of their own: one that takes its process down is lost alone.

Decoders are C. One of them may end its process (SIGSEGV, abort), never return, or take all memory, and no `except`
helps. So items go to child processes in chunks. What a child had not answered when it ended goes to a fresh one, which
answers item by item: the item in hand when that one ends is the suspect. It is tried once more, first in a fresh child,
because an earlier item may have spoilt the memory of the old one; only an item that fails there too is `Lost`.

Bounds are kept in a way that works on Linux and macOS alike. Memory: the parent reads each child's resident size while
it waits and kills a child above the bound (macOS takes RLIMIT_AS and does not enforce it). Processor time: a timer in
the child, SIGPROF. Time on the clock, for what hangs without working: the parent's count.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from mlx_tasks.errors import OutOfMemoryError, UnavailableError

_CHUNK = 16
_AHEAD = 128
"""Items handed out before the oldest is answered: enough to keep children busy, few enough that answers stay few."""
_TICK_S = 0.05
_FLUSH_S = 0.05
"""Quick answers go together, since a message costs as much as a small image; none waits longer than this."""
_START_S = 300.0
_STARTS = 5
_UNKILLABLE_S = 10.0
_READY = "ready"


@dataclass(frozen=True)
class Bounds:
    """What one item may take.

    Attributes:
        memory_bytes: resident size of its process.
        cpu_s: processor time (seconds).
        wall_s: time on the clock (seconds).
    """

    memory_bytes: int
    cpu_s: float = 120.0
    wall_s: float = 900.0


class Lost(NamedTuple):
    """The answer for an item that took its process down twice: how, for people."""

    why: str


@dataclass
class _Child:
    """One process, and the rows it was given and has not answered, oldest first."""

    process: SpawnProcess
    connection: Connection
    rows: deque[int] = field(default_factory=deque)
    careful: bool = False
    ready: bool = False
    waited_s: float = 0.0
    stopped_for: str = ""


def in_children(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int, bounds: Bounds
) -> Iterator[Any | Lost]:
    """`function` of each item, in order, or Lost.  `function` and items go through pickle.

    An exception of `function` is raised here. Children are spawned when the first answer is asked for, take about a
    quarter of a second to start, and end with this process or with the iterator.
    Raises: OutOfMemoryError where a child does not come up; UnavailableError where one cannot be ended.
    """
    crew = _Crew(function, items, bounds)
    try:
        yield from crew.answers(workers)
    finally:
        crew.end()


class _Crew:
    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any], bounds: Bounds) -> None:
        self._function = function
        self._items = items
        self._bounds = bounds
        self._children: list[_Child] = []
        self._next = 0
        self._answers: dict[int, Any] = {}
        self._tried: set[int] = set()
        self._looked_at = time.monotonic()
        self._stillborn = 0

    def answers(self, workers: int) -> Iterator[Any | Lost]:
        self._children = [self._start() for _ in range(min(workers, len(self._items)))]
        self._looked_at = time.monotonic()
        for row in range(len(self._items)):
            while row not in self._answers:
                self._turn(row)
            yield self._answers.pop(row)

    def end(self) -> None:
        for child in self._children:
            self._bury(child)

    def _turn(self, oldest: int) -> None:
        """Hand out what may be handed out, take what comes within a tick, and see whether a child is out of bounds."""
        for child in self._children:
            if child.ready and not child.rows and self._next < min(len(self._items), oldest + _AHEAD):
                end = min(len(self._items), self._next + _CHUNK)
                self._give(child, range(self._next, end), careful=False)
                self._next = end
        busy = {child.connection: child for child in self._children if child.rows or not child.ready}
        for connection in wait(list(busy), _TICK_S):
            self._take(busy[connection])  # type: ignore[index]
        self._watch()

    def _give(self, child: _Child, rows: Sequence[int], careful: bool) -> None:
        child.rows.extend(rows)
        child.careful = careful
        child.waited_s = 0.0
        # A child that is gone is noticed where its answer is awaited.
        with contextlib.suppress(OSError):
            child.connection.send((0.0 if careful else _FLUSH_S, [self._items[row] for row in rows]))

    def _take(self, child: _Child) -> None:
        try:
            message = child.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._replace(child)
            return
        child.waited_s = 0.0
        if message == _READY:
            child.ready, self._stillborn = True, 0
            return
        for fine, answer in message:
            if not fine:
                raise answer
            self._answers[child.rows.popleft()] = answer

    def _watch(self) -> None:
        """Kill each busy child that is out of bounds.  The clock counts looks, so a suspended machine is no hang."""
        now = time.monotonic()
        if now - self._looked_at < _TICK_S:
            return
        passed, self._looked_at = min(now - self._looked_at, 1.0), now
        for child in self._children:
            if child.stopped_for or (child.ready and not child.rows):
                continue
            child.waited_s += passed
            allowed_s = self._bounds.wall_s if child.ready else _START_S
            if child.waited_s > allowed_s:
                child.stopped_for = f"it did not end within {allowed_s:g} s and was stopped"
            elif _resident(child.process) > self._bounds.memory_bytes:
                child.stopped_for = f"it took more than {self._bounds.memory_bytes / 1e6:.0f} MB and was stopped"
            if child.stopped_for:
                child.process.kill()

    def _replace(self, child: _Child) -> None:
        """Put a fresh child in the place of one that ended, with its rows but the one that is lost."""
        self._bury(child)
        how = child.stopped_for or _end_of(child.process.exitcode, self._bounds)
        if not child.ready:
            self._stillborn += 1
            if self._stillborn == _STARTS:
                raise OutOfMemoryError(
                    f"a child process for decoding did not start, {_STARTS} times in a row ({how}): is there memory "
                    "for one? Lower data.max_pixels or MLX_TASKS_THREADS"
                )
        rows = list(child.rows)
        if child.careful and rows:
            if rows[0] in self._tried:
                self._answers[rows.pop(0)] = Lost(how)
            else:
                self._tried.add(rows[0])
        fresh = self._start()
        self._children[self._children.index(child)] = fresh
        if rows:
            self._give(fresh, rows, careful=True)

    def _start(self) -> _Child:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self._function, self._bounds.cpu_s, os.getpid())
        process = context.Process(target=_serve, args=arguments, daemon=True)
        with _this_package_first():
            process.start()
        theirs.close()
        return _Child(process, ours)

    def _bury(self, child: _Child) -> None:
        child.connection.close()
        child.process.kill()
        child.process.join(_UNKILLABLE_S)
        if child.process.exitcode is None:
            raise UnavailableError(
                f"process {child.process.pid} does not end when killed: a disk that it reads from does not answer"
            )


@contextlib.contextmanager
def _this_package_first() -> Iterator[None]:
    """A child looks for modules where this process does; another copy of the package may stand before this one there.

    Loading a model of MLflow puts the model's own source files first in `sys.path`: a few of this package's.
    """
    before, own = list(sys.path), str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, own)
    try:
        yield
    finally:
        sys.path[:] = before


def _serve(connection: Connection, function: Callable[[Any], Any], cpu_s: float, parent: int) -> None:
    """A child's life: chunks in, their answers out, until the parent is gone."""
    _stop_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its children
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError, OSError):
        connection.send(_READY)
        while True:
            flush_s, items = connection.recv()
            answers, sent = [], time.monotonic()
            for item in items:
                signal.setitimer(signal.ITIMER_PROF, cpu_s)
                answers.append(_answer(function, item))
                if time.monotonic() - sent >= flush_s:
                    connection.send(answers)
                    answers, sent = [], time.monotonic()
            if answers:
                connection.send(answers)


def _answer(function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    try:
        return True, function(item)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return False, error


def _stop_with_parent(parent: int) -> None:
    """End this process when its parent is gone: one that waits for work would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _resident(process: SpawnProcess) -> int:
    """Bytes of memory that the process holds; 0 where it is gone."""
    try:
        return psutil.Process(process.pid).memory_info().rss
    except psutil.Error:
        return 0


def _end_of(code: int | None, bounds: Bounds) -> str:
    """How a process ended, in words."""
    if code == -signal.SIGPROF:
        return f"it took more than {bounds.cpu_s:g} s of processor time and was stopped"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
        return f"it was ended by signal {-code}"
    return f"its process ended with exit code {code}"
