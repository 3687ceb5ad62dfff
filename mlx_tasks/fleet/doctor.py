"""`mlx-tasks doctor`: runs the checks of one side, tells them, and ends with a status for scripts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator

import httpx

from mlx_tasks.errors import ExitCode
from mlx_tasks.fleet.checks import WORKER, Check, Finding
from mlx_tasks.fleet.settings import WorkerSettings

SIGNS = {"ok": "ok     ", "warning": "warning", "wrong": "WRONG  "}
FIRST = {"api_server"}
"""Where one of these is wrong, what asks the same server says nothing more."""
NEED_SERVER = {"airflow_version", "clock", "key"}


def examine(settings: WorkerSettings, checks: Iterable[Check] = WORKER) -> Iterator[Finding]:
    """Each check's finding as it comes; one that breaks itself is wrong too."""
    down = False
    for check in checks:
        if down and check.__name__ in NEED_SERVER:
            continue
        try:
            finding = check(settings)
        except (httpx.HTTPError, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            finding = Finding(check.__name__.replace("_", " "), "wrong", f"{type(error).__name__}: {error}", "")
        down = down or (check.__name__ in FIRST and finding.state == "wrong")
        yield finding


def tell(findings: Iterable[Finding]) -> int:
    """Print each; 0 where none is wrong, else the code of something that is not available."""
    wrong = 0
    for one in findings:
        print(f"{SIGNS[one.state]}  {one.check}: {' '.join(one.told.split())}", flush=True)
        if one.state != "ok" and one.fix:
            print(f"         fix: {one.fix}", flush=True)
        wrong += one.state == "wrong"
    print(f"{wrong} wrong" if wrong else "nothing is wrong", flush=True)
    return int(ExitCode.UNAVAILABLE) if wrong else 0
