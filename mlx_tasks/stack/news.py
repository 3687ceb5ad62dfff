"""What is new to whoever follows a run beside the run itself: the stack's events, and what a still run waits for."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from mlx_tasks.errors import BusyError, InterruptedStageError, UnavailableError
from mlx_tasks.stack import supervisor
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.processes import WATCHER, noted_problem
from mlx_tasks.stack.waiting import Tasks, reasons

STILL_S = 30.0
"""So long nothing changes before it is said what is waited for; asked again as often."""


class News:
    """Each piece of news is given once, and again when it comes back."""

    def __init__(self, api: AirflowApi, dag_id: str, progress: Path, still_s: float = STILL_S) -> None:
        self._api, self._dag_id, self._progress, self._still_s = api, dag_id, progress, still_s
        self._log = api.layout.logs / f"{WATCHER}.log"
        self._read = self._log.stat().st_size if self._log.exists() else 0
        self._seen: object = None
        self._since = self._asked = time.monotonic()
        self._told: set[str] = set()
        self._away = ""
        self._away_told = False

    def of_the_stack(self) -> list[str]:
        """What the watcher did.

        A watcher that is gone is replaced.  Raises: InterruptedStageError where `make down` ended the stack,
            UnavailableError where the watcher gave it up.
        """
        layout = self._api.layout
        if problem := noted_problem(layout):
            raise UnavailableError(f"the stack was given up: {problem}")
        if not layout.record.exists():
            raise InterruptedStageError(
                "the stack was ended (`make down`); its state is kept: `make up` starts it again and the run goes on"
            )
        notes = self._new_lines()
        if not supervisor.watched(layout):
            with contextlib.suppress(BusyError), supervisor.turn(layout, "a follower", lambda text: None, wait_s=0):
                if layout.record.exists() and not supervisor.watched(layout):
                    supervisor.start_watcher(layout)
                    notes.append("the process that watches the stack was gone and is started again")
        if self._away and not self._away_told:
            self._away_told = True
            notes.append(f"Airflow is away and waited for ({self._away})")
        return notes

    def of_the_run(self, run: dict[str, Any], tasks: Tasks, lines: dict[str, str]) -> list[str]:
        """What the run waits for, where neither its tasks nor their lines of progress have changed for a while."""
        notes = ["Airflow answers again"] if self._away_told else []
        self._away, self._away_told = "", False
        now = time.monotonic()
        states = [(task["task_id"], task["map_index"], task["state"], task["try_number"]) for task in tasks]
        state = (run["state"], states, lines)
        if state != self._seen:
            self._seen, self._since, self._asked, self._told = state, now, now, set()
        if now - max(self._since, self._asked) < self._still_s or run["state"] in ("success", "failed"):
            return notes
        self._asked = now
        found = reasons(self._api, self._dag_id, run, tasks, self._progress) or self._silence(run, tasks)
        notes += [reason for reason in found if reason not in self._told]
        self._told.update(found)
        return notes

    def away(self, error: UnavailableError) -> None:
        """The server did not answer."""
        self._away = str(error).splitlines()[0][:300]

    def _silence(self, run: dict[str, Any], tasks: Tasks) -> list[str]:
        """Nothing is known to be in the way: where to look."""
        names = ", ".join(dict.fromkeys(task["task_id"] for task in tasks if task["state"] == "running"))
        where = f"{self._api.url}/dags/{self._dag_id}/runs/{run['dag_run_id']}"
        return [f"{names or 'no task'} runs, without a new word for a while; logs are at {where}"]

    def _new_lines(self) -> list[str]:
        """What the watcher wrote since."""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            if log.seek(0, 2) < self._read:
                self._read = 0  # begun anew
            log.seek(self._read)
            text = log.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read += len(whole)
            return [line for line in whole.decode(errors="replace").splitlines() if line.strip()]
        return []
