"""The embedded stack's Airflow (tables and logs), and copies of models that servers made."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from mlx_tasks.errors import UnavailableError
from mlx_tasks.files import read_json
from mlx_tasks.retention.plan import Area, Item
from mlx_tasks.workspace.paths import Places

TABLES = (
    "_xcom_archive,asset_event,callback,dag_run,deadline,import_error,job,log,task_instance,task_instance_history,"
    "task_reschedule,trigger,xcom"
)
"""Not `dag` and `dag_version`: what they forget, Airflow has to read again."""
LIMIT_S = 3600.0


def airflow_areas(places: Places, before: float, busy: str) -> list[Area]:
    """Tables and logs of the stack whose state lies here; none where there is no such stack.

    busy: why the tables stay, or empty.
    """
    home = places.state / "airflow"
    database = home / "airflow.db"
    if not database.is_file():
        return []
    tables, logs = Area("Airflow's rows of runs"), Area("Airflow's logs")
    rows = _old_rows(database, before)
    if rows:
        tables.sort(Item(f"{rows} rows", 0, _DbClean(places, before)), busy)
    for folder in _log_folders(home / "logs"):
        newest = max((path.stat().st_mtime for path in folder.rglob("*")), default=folder.stat().st_mtime)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        logs.sort(Item(str(folder), size, _Folder(folder)), "young" if newest > before else busy)
    return [tables, logs]


def _log_folders(logs: Path) -> list[Path]:
    """Of each run of a task, and of each day of the processes that write one a day, but for their last."""
    days = [sorted((logs / name).glob("[0-9]*-[0-9]*-[0-9]*"))[:-1] for name in ("dag_processor", "scheduler")]
    return [*sorted(logs.glob("dag_id=*/run_id=*")), *days[0], *days[1]]


def served_copies(places: Places, before: float) -> Area:
    """Bundles that servers brought from the registry. What served last stays; any other comes again when asked for."""
    area = Area("copies of models that servers made")
    for store in (places.state / "serving" / "models",):
        last = ""
        with contextlib.suppress(OSError, ValueError, KeyError):
            last = str(read_json(store / "last_good.json").get("folder", ""))
        for folder in sorted(path for path in store.glob("*/*") if path.is_dir()):
            newest = max((path.stat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            serves = bool(last) and Path(last).resolve().is_relative_to(folder.resolve())
            area.sort(
                Item(str(folder), size, _Folder(folder)),
                "served last" if serves else "young" if newest > before else "",
            )
    return area


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self) -> None:
        """Under another name first: a killed removal leaves nothing half that looks whole."""
        aside = self._folder.with_name(f".{self._folder.name}.going")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


class _DbClean:
    def __init__(self, places: Places, before: float) -> None:
        self._places, self._before = places, before

    def __call__(self) -> None:
        """Airflow's own `db clean`.  Raises: UnavailableError."""
        from mlx_tasks.stack.layout import Layout
        from mlx_tasks.stack.services import environment

        when = datetime.fromtimestamp(self._before, UTC).isoformat()
        command = ["airflow", "db", "clean", "--clean-before-timestamp", when, "--tables", TABLES]
        command += ["--skip-archive", "--yes", "--error-on-cleanup-failure"]
        settings = environment(Layout.of(self._places.repository))
        try:
            done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"airflow db clean took more than {LIMIT_S:.0f} s: try it by hand") from None
        if done.returncode:
            raise UnavailableError(f"airflow db clean ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def _old_rows(database: Path, before: float) -> int:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(before))
    total = 0
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        for table, column in (("dag_run", "start_date"), ("task_instance", "start_date"), ("log", "dttm")):
            with contextlib.suppress(sqlite3.Error):
                total += connection.execute(f"SELECT count(*) FROM {table} WHERE {column} < ?", (when,)).fetchone()[0]
    return total
