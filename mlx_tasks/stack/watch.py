"""The process that watches the embedded stack's parts: a dead or deaf one is started again, and told once.

`make up` and `make demo` start it and `make down` ends it. Its lines are in `logs/watcher.log`, and whoever follows a
run reads them too. A part that keeps dying is given up: then the whole stack is ended, and followers are told why.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

from mlx_tasks.stack import supervisor
from mlx_tasks.stack.health import ill_parts, tail
from mlx_tasks.stack.layout import Layout
from mlx_tasks.stack.processes import WATCHER, end, note, recorded
from mlx_tasks.stack.services import Service, services

POLL_S = 1.0
LOOK_EVERY = 15
"""Polls between two looks at the parts' health."""
DEAF_LOOKS = 20
"""So many looks in a row that find a living part not well (five minutes) end it; a machine asleep makes none."""
MOST_DEATHS, WITHIN_S = 4, 600.0
"""One death more within that time, and the part is given up."""


class Watcher:
    """Knows what the record names; `look` mends what has died since."""

    def __init__(self, layout: Layout, most_deaths: int = MOST_DEATHS) -> None:
        self._layout, self._most = layout, most_deaths
        self._deaths: dict[str, list[float]] = defaultdict(list)
        self._children: dict[str, subprocess.Popen] = {}
        self._deaf: Counter[str] = Counter()
        self._looks = 0

    def look(self) -> str:
        """Start again what is dead; why the stack is given up, or nothing."""
        entries = {entry.name: entry for entry in recorded(self._layout)}
        for service in services(self._layout):
            if child := self._children.get(service.name):
                child.poll()  # a dead child of ours is a zombie until then
            entry = entries.get(service.name)
            if entry and entry.process():
                continue
            if entry:
                end([entry])  # what it left: a killed scheduler's idle workers
            if problem := self._start_again(service):
                return problem
        self._looks += 1
        if self._looks % LOOK_EVERY == 0:
            self._end_the_deaf()
        return ""

    def _start_again(self, service: Service) -> str:
        log = self._layout.logs / f"{service.name}.log"
        now = time.monotonic()
        deaths = [at for at in self._deaths[service.name] if now - at < WITHIN_S] + [now]
        self._deaths[service.name] = deaths
        if len(deaths) > self._most:
            return (
                f"{service.name} died {len(deaths)} times within {now - deaths[0]:.0f} s and is given up; the end of "
                f"{log}:\n{tail(log)}\nMend what it says, then `make up`: runs go on from where they were"
            )
        tell(f"{service.name} has died{self._how(service.name)} and is started again; its log: {log}")
        self._children[service.name] = supervisor.launch_again(self._layout, service)
        return ""

    def _how(self, name: str) -> str:
        code = child.returncode if (child := self._children.get(name)) else None
        if code is None:
            return ""
        return f" (signal {-code})" if code < 0 else f" (exit code {code})"

    def _end_the_deaf(self) -> None:
        ill = ill_parts(self._layout)
        if "api-server" in ill:  # nobody knows of the others
            ill = {name: why for name, why in ill.items() if name in ("api-server", "mlflow")}
        self._deaf = Counter({name: self._deaf[name] + 1 for name in ill})
        for name, why in ill.items():
            if self._deaf[name] >= DEAF_LOOKS:
                tell(f"{name} lives and is not well ({why}): it is ended")
                end([entry for entry in recorded(self._layout) if entry.name == name])
                del self._deaf[name]


def watch(layout: Layout, stop: threading.Event) -> int:
    """Watch until told to stop; 1 where the stack was given up."""
    watcher = Watcher(layout)
    while not stop.wait(POLL_S):
        if not layout.record.exists():
            return 0  # `make down` without having met us
        problem = watcher.look()
        if problem:
            tell(problem)
            end([entry for entry in recorded(layout) if entry.name != WATCHER])
            note(layout, [], problem)
            return 1
    return 0


def tell(text: str) -> None:
    """One event."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def main() -> int:
    """`python -m mlx_tasks.stack.watch CHECKOUT`, as `supervisor.start` runs it."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stop.set())
    return watch(Layout.of(Path(sys.argv[1])), stop)


if __name__ == "__main__":
    sys.exit(main())
