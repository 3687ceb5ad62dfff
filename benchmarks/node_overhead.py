"""How many seconds does each node take beyond its own work?  Reads a run that has ended, of a stack that is up.

    make demo && python benchmarks/node_overhead.py [RUN_ID]

A node's seconds are Airflow's for its task; its own work is what the stage's process measured of itself. Between the
two lie the task's start, the workspace, DVC's hashing and pushing, the interpreter and its imports. `between` is what
Airflow took from the end of one task to the start of the next.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

from record import save, spread

from mlx_tasks.files import read_json
from mlx_tasks.stack import supervisor
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.demo import DAG_ID
from mlx_tasks.stack.layout import Layout
from mlx_tasks.workspace.paths import workspace_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_id", nargs="?", help="default: the newest demo run")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout whose stack is up")
    arguments = parser.parse_args()
    layout = Layout.of(arguments.root)
    run_id = arguments.run_id or supervisor.noted_run(layout)
    if run_id is None or not supervisor.running(layout):
        raise SystemExit("no stack is up with a run that has ended: `make demo` makes both")
    api = AirflowApi(layout)
    run = api.run(DAG_ID, run_id)
    tasks = [t for t in api.tasks(DAG_ID, run_id) if t["start_date"] and t["end_date"]]
    tasks.sort(key=lambda t: t["start_date"])
    stages = workspace_path(layout.state, run_id) / ".run" / "stages"
    rows, ended = [], _time(run["queued_at"] or run["start_date"])
    for task in tasks:
        begin, end = _time(task["start_date"]), _time(task["end_date"])
        result = api.xcom(DAG_ID, run_id, task, "result") or {}
        own = _own_seconds(stages, result)
        row: dict[str, Any] = {
            "task": task["task_id"] + (f"[{task['map_index']}]" if task["map_index"] >= 0 else ""),
            "status": result.get("status", ""),
            "seconds": end - begin,
            "own_work": own,
            "overhead": end - begin - own,
            "between": max(0.0, begin - ended),
        }
        ended = max(ended, end)
        rows.append(row)
        print(f"{row['task']:24} {row['status']:7} {row['seconds']:7.1f} s  own {own:7.1f}  ", end="")
        print(f"overhead {row['overhead']:5.1f}  before it {row['between']:4.1f}")
    wall = _time(run["end_date"]) - _time(run["queued_at"] or run["start_date"])
    staged = [row for row in rows if row["own_work"] > 0]
    summary = {
        "run": run_id,
        "wall_seconds": wall,
        "own_work_seconds": sum(row["own_work"] for row in rows),
        "overhead": spread([row["overhead"] for row in staged]),
        "between": spread([row["between"] for row in rows]),
    }
    print(summary)
    save("node_overhead", question="Seconds of each node beyond its own work", config=summary, rows=rows)


def _own_seconds(stages: Path, result: dict[str, Any]) -> float:
    """What the stage measured of itself; 0 for a cached stage and for what is no stage."""
    if result.get("status") != "ran":
        return 0.0
    return float(read_json(stages / f"{result['target']}.json")["seconds"])


def _time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


if __name__ == "__main__":
    main()
