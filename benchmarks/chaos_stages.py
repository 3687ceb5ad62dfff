"""What does a whole chain lose when every one of its stages is killed once?  `make chaos` runs it after chaos.py.

    python benchmarks/chaos_stages.py [--seed 0]

The DAG optimize_diffusion at the tests' size, all stages real, on one edge worker (PostgreSQL, Airflow, MLflow, an S3
server; tests/fleet_world.py): once undisturbed, and once, on a fleet with empty caches and an empty store, with
kill -9 of each stage's process at a random moment of the first nine tenths of the life it had undisturbed. The table
tells for every file of the chain's outs whether it is the same in both runs. What holds seconds differs between any two
runs. The search chooses by error alone here: what a latency decides differs too.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from record import ROOT, save

sys.path.insert(0, str(ROOT / "tests"))

import orchestration as o
import psutil
import yaml
from fleet_world import Fleet, wait_for

from mlx_tasks.catalog import STAGES
from mlx_tasks.errors import UnavailableError

DAG = "optimize_diffusion"
CONF = {"preset": "toy", "overrides": {"search.max_quality_loss": 0.0}}
"""All four architectures are tried, and the one of least error is chosen whatever its latency."""
WORKER = "alpha"
UNSEEN_S = 2.0
"""Taken for the life of a stage that was too short to be seen undisturbed."""


class Watch:
    """Sees every stage's process below a worker, and how long it lives; with `lives` it kills each once.

    lives: {target: seconds its process lived undisturbed}, of which a random moment of the first nine tenths is taken.
    """

    def __init__(self, worker: int, lives: dict[str, float] | None, moments: random.Random) -> None:
        self.lived: dict[str, float] = {}
        self.killed: dict[str, float | None] = {}
        self._worker, self._lives, self._moments = psutil.Process(worker), lives, moments
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for process in self._worker.children(recursive=True):
                if target := _target(process):
                    if self._lives is None:
                        self.lived[target] = time.time() - process.create_time()
                    elif target not in self.killed:
                        self.killed[target] = self._kill(process, self._lives.get(target, UNSEEN_S))

    def _kill(self, process: psutil.Process, lived_s: float) -> float | None:
        """Seconds of its life after which it was killed; None if it had ended."""
        moment = self._moments.uniform(0, 0.9 * lived_s)
        time.sleep(max(0.0, process.create_time() + moment - time.time()))
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            process.kill()
        except psutil.NoSuchProcess:
            return None
        return round(moment, 2)


def _target(process: psutil.Process) -> str:
    """The stage and its arguments, of a stage's own process; else nothing."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    if len(words) < 3 or not words[1].endswith("/mlx-tasks") or words[2] not in STAGES:
        return ""
    return " ".join(words[2:])


def main() -> None:
    """Run twice, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    moments = random.Random(given.seed)
    undisturbed = one_run("undisturbed", None, moments)
    disturbed = one_run("disturbed", undisturbed["lived_s"], moments)
    rows = [
        {"file": name, "equal": disturbed["outs"].get(name) == digest} for name, digest in undisturbed["outs"].items()
    ]
    for row in rows:
        if not row["equal"]:
            print(f"{row['file']} differs")
    print(f"{sum(row['equal'] for row in rows)} of {len(rows)} files equal")
    config: dict[str, Any] = {"seed": given.seed}
    for run in (undisturbed, disturbed):
        config[run["run"]] = {name: value for name, value in run.items() if name not in ("run", "outs")}
        print(config[run["run"]])
    print(save("chaos_stages", question="What differs after every stage was killed once?", config=config, rows=rows))


def one_run(name: str, lives: dict[str, float] | None, moments: random.Random) -> dict[str, Any]:
    """The whole chain on a fleet of its own; with lives, every stage is killed once."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-stages-"))
    fleet, watch = Fleet(folder, real=tuple(STAGES)), None
    try:
        fleet.start()
        worker = fleet.add_worker(WORKER)
        wait_for("the worker", lambda: "takes mlx" in fleet.processes.log(WORKER))
        fleet.api.wait_for_dag(DAG)
        began = time.monotonic()
        fleet.api.trigger(DAG, name, CONF)
        watch = Watch(worker.pid, lives, moments)
        state = wait_for("the end", lambda: ended(fleet, name), 3000)
        seconds = time.monotonic() - began
        tries = {
            task["task_id"] + (f"[{task['map_index']}]" if task["map_index"] >= 0 else ""): task["try_number"]
            for task in fleet.api.tasks(DAG, name)
        }
        watch.stop()
        told = {"run": name, "state": state, "seconds": seconds, "tries": tries}
        told |= {"lived_s": watch.lived} if lives is None else {"killed_after_s": watch.killed}
        print(json.dumps(told), flush=True)
        return {**told, "outs": outs(fleet, name)}
    finally:
        if watch is not None:
            watch.stop()
        fleet.stop()
        shutil.rmtree(folder, ignore_errors=True)


def ended(fleet: Fleet, run_id: str) -> str | None:
    """How the run ended; None while it goes on."""
    try:
        state = fleet.api.run(DAG, run_id)["state"]
    except UnavailableError:
        return None
    return state if state in ("success", "failed") else None


def outs(fleet: Fleet, run_id: str) -> dict[str, str]:
    """{file: hash} of what the run committed, the files of folders one by one."""
    branches = o.run_git(fleet.origin, "for-each-ref", "--format=%(refname)", "refs/heads/runs").split()
    branch = next(one for one in branches if one.rpartition("/")[2].startswith(run_id))
    lock = yaml.safe_load(o.run_git(fleet.origin, "show", f"{branch}:dvc.lock"))
    found = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}
    folders = {path: digest for path, digest in found.items() if digest.endswith(".dir")}
    for path, digest in folders.items():
        listed = json.loads(fleet.content(f"dvc/files/md5/{digest[:2]}/{digest[2:]}"))
        found |= {f"{path}/{file['relpath']}": file["md5"] for file in listed}
        del found[path]
    return found


if __name__ == "__main__":
    main()
