"""What does the fleet itself cost?  Nodes, the first step, trials on more workers, bytes that move.

    python benchmarks/fleet_figures.py [--only nodes trials bytes] [--workers 1 2 4]

The control plane and workers of tests/fleet_world.py (PostgreSQL, Airflow with edge workers, MLflow, an S3 server), all
on this machine, one thread a worker; a chain of the real validate, train and search stages on digits.

nodes: seconds of each task beyond what its stage measured of itself, against tasks that do nothing on the same
executor, and the seconds between one task's end and the next one's start. first step: from the trigger to the first
line of training. trials: from the start of the first of 16 search trials to the end of the last, on 1, 2, 4 workers;
every one of these runs has a seed of its own, so that nothing is cached. bytes: what went between workers and store
(counted by a proxy, both ways, headers included) against the bytes that are new in the store, for a first run, one in
which nothing changed, and one in which the training's length did.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import ROOT, save, spread

sys.path.insert(0, str(ROOT / "tests"))

from fleet_world import BUCKET, DAG, Fleet, wait_for

from mlx_tasks.files import read_json
from mlx_tasks.workspace.paths import workspace_path

TRIALS = 16
CONF = {"preset": "toy", "search_trials": 2, "overrides": {"train.steps": 60, "search.trial_updates": 20}}
SPACE = {"search.widths": [8, 16, 24, 32], "search.depths": [1, 2], "search.attention": ["none", "middle"]}
"""Of the 16 trials: 32 architectures, so that each trial has one of its own."""
REAL = ("validate", "train", "search_plan", "search_trial")


class CountingProxy:
    """TCP on loopback, passed on as it is; `up` and `down` count bytes to the store and from it."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target, self.up, self.down = (host, int(port)), 0, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def taken(self) -> tuple[int, int]:
        """(up, down) since the last call."""
        told = self.up, self.down
        self.up = self.down = 0
        return told

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(self._target)
            for source, sink, name in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pass_on, args=(source, sink, name), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        try:
            while content := source.recv(1 << 16):
                setattr(self, name, getattr(self, name) + len(content))
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for one in (source, sink):
                one.close()


def main() -> None:
    """Start the fleet, take each figure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="of the trials")
    parser.add_argument("--updates", type=int, default=200, help="optimiser steps of one of the 16 trials")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder, rows = Path(tempfile.mkdtemp(prefix="fleet-figures-")), []
    fleet = Fleet(folder, real=REAL)
    try:
        fleet.start()
        for name in given.only:
            for row in FIGURES[name](fleet, given):
                rows.append({"load": os.getloadavg()[0], **row})
                print(rows[-1], flush=True)
    finally:
        fleet.stop()
        shutil.rmtree(folder, ignore_errors=True)
    config = {"trials": TRIALS, "trial_updates": given.updates, "threads_of_a_worker": 1, "cores": os.cpu_count()}
    print(save("fleet_figures", question="What does the fleet itself cost?", config=config, rows=rows))


def nodes(fleet: Fleet, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Overheads at the edge, and the time to the first step."""
    fleet.add_worker("alpha")
    wait_for("the worker", lambda: "takes mlx" in fleet.processes.log("alpha"))
    fleet.api.wait_for_dag("empty_chain")
    fleet.api.trigger("empty_chain", "empty", {})
    ended = ("success", "failed")
    wait_for("the empty chain", lambda: fleet.api.run("empty_chain", "empty")["state"] in ended, 300)
    empty = _by_start(fleet.api.tasks("empty_chain", "empty"))
    began = time.monotonic()
    fleet.api.trigger(DAG, "nodes", CONF)
    wait_for("training", lambda: "[train" in fleet.processes.log("alpha"), 300)
    first = time.monotonic() - began
    fleet.state("nodes", 600)
    tasks = _by_start(fleet.tasks("nodes"))
    stages = workspace_path(fleet.folder / "alpha" / "state", "nodes") / ".run" / "stages"
    beyond = []
    for one in tasks:
        result = fleet.api.xcom(DAG, "nodes", one, "result") or {}
        if result.get("status") == "ran":
            beyond.append(_seconds(one) - float(read_json(stages / f"{result['target']}.json")["seconds"]))
    fleet.processes.stop("alpha")
    return [
        {"figure": "seconds of a task that does nothing", **spread([_seconds(one) for one in empty])},
        {"figure": "seconds between two tasks that do nothing", **spread(_between(empty))},
        {"figure": "seconds of a stage's task beyond the stage's own", **spread(beyond)},
        {"figure": "seconds between two stages' tasks", **spread(_between(tasks))},
        {"figure": "seconds from the trigger to the first line of training", **spread([first])},
    ]


def trials(fleet: Fleet, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Sixteen trials on more and more workers."""
    rows, names = [], []
    for seed, count in enumerate(given.workers, start=1):
        for name in [f"worker-{number}" for number in range(len(names), count)]:
            fleet.add_worker(name)
            names.append(name)
        wait_for("the workers", lambda: all("takes mlx" in fleet.processes.log(name) for name in names))
        run_id = f"trials-{count}"
        conf = {**CONF, "search_trials": TRIALS, "seed": seed}
        conf["overrides"] = {**CONF["overrides"], **SPACE, "search.trial_updates": given.updates}
        fleet.api.trigger(DAG, run_id, conf)
        state = fleet.state(run_id, 1800)
        found = _by_start([one for one in fleet.tasks(run_id) if one["task_id"] == "trial"])
        wall = max(_time(one["end_date"]) for one in found) - _time(found[0]["start_date"])
        told = {"figure": "16 search trials", "workers": count, "state": state, "wall_seconds": wall}
        shares = {name: sum(one["hostname"] == name for one in found) for name in names}
        rows.append({**told, "of_each": shares, **spread([_seconds(one) for one in found])})
        rows[-1]["speed_up"] = rows[0]["wall_seconds"] / wall
    for name in names:
        fleet.processes.stop(name)
    return rows


def transfers(fleet: Fleet, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes between two workers and the store against those that are new there, for three runs."""
    proxy, rows = CountingProxy(fleet.store), []
    for name in ("one", "two"):
        fleet.add_worker(name, ADO_DVC_ENDPOINT=proxy.url)
    wait_for("the workers", lambda: all("takes mlx" in fleet.processes.log(name) for name in ("one", "two")))
    longer = {**CONF["overrides"], "train.steps": 61}
    for run_id, conf in (
        ("first", {**CONF, "seed": 99}),
        ("nothing-changed", {**CONF, "seed": 99}),
        ("training-changed", {**CONF, "seed": 99, "overrides": longer}),
    ):
        proxy.taken()
        before = stored_bytes(fleet)
        began = time.monotonic()
        fleet.api.trigger(DAG, run_id, conf)
        state = fleet.state(run_id, 900)
        seconds = time.monotonic() - began
        up, down = proxy.taken()
        new = stored_bytes(fleet) - before
        told = {"figure": "bytes between workers and store", "run": run_id, "state": state, "seconds": seconds}
        rows.append({**told, "up": up, "down": down, "new_in_the_store": new})
    for name in ("one", "two"):
        fleet.processes.stop(name)
    return rows


FIGURES = {"nodes": nodes, "trials": trials, "bytes": transfers}


def stored_bytes(fleet: Fleet) -> int:
    """Of DVC's part of the bucket."""
    pages = fleet._client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="dvc/")
    return sum(entry["Size"] for page in pages for entry in page.get("Contents", []))


def _by_start(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((one for one in tasks if one["start_date"] and one["end_date"]), key=lambda one: one["start_date"])


def _between(tasks: list[dict[str, Any]]) -> list[float]:
    return [max(0.0, _time(b["start_date"]) - _time(a["end_date"])) for a, b in pairwise(tasks)]


def _seconds(task: dict[str, Any]) -> float:
    return _time(task["end_date"]) - _time(task["start_date"])


def _time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


if __name__ == "__main__":
    main()
