"""What does a whole chain lose when every one of its stages is killed once?  `make chaos` runs it after chaos.py.

    python benchmarks/chaos_stages.py [--seed 0] [--latest 8]

The DAG optimize_diffusion at the tests' size, all stages real, on one edge worker (PostgreSQL, Airflow, MLflow, an S3
server; tests/fleet_world.py): once undisturbed, and once, on a fleet with empty caches and an empty store, with
kill -9 of each stage's process at a random moment of its first `--latest` seconds. The table tells for every file of
the chain's outs whether it is the same in both runs. What holds seconds differs between any two runs, and so may what
is chosen by latency.
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
CONF = {"preset": "toy"}
WORKER = "alpha"


class Killer:
    """Kills the first process of every stage's target below a worker, once, a random time after it was seen."""

    def __init__(self, worker: int, latest_s: float, moments: random.Random) -> None:
        self.told: dict[str, float] = {}
        self._worker, self._latest_s, self._moments = psutil.Process(worker), latest_s, moments
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """{target: seconds after which its process was killed}; a stage that ended before is tried again no more."""
        self._over.set()
        self._thread.join()
        return self.told

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            for process in self._worker.children(recursive=True):
                target = _target(process)
                if target and target not in self.told:
                    moment = self._moments.uniform(0, self._latest_s)
                    time.sleep(moment)
                    alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
                    if alive:
                        process.kill()
                    self.told[target] = moment if alive else -1.0


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
    parser.add_argument("--latest", type=float, default=8.0, help="seconds within which a stage is killed")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    undisturbed = one_run("undisturbed", None)
    disturbed = one_run("disturbed", (given.latest, random.Random(given.seed)))
    rows = [
        {"file": name, "equal": disturbed["outs"].get(name) == digest} for name, digest in undisturbed["outs"].items()
    ]
    for row in rows:
        if not row["equal"]:
            print(f"{row['file']} differs")
    print(f"{sum(row['equal'] for row in rows)} of {len(rows)} files equal")
    config = {"seed": given.seed, "latest_s": given.latest}
    for run in (undisturbed, disturbed):
        config[run["run"]] = {name: run[name] for name in ("state", "seconds", "tries", "killed_after_s")}
        print(config[run["run"]])
    print(save("chaos_stages", question="What differs after every stage was killed once?", config=config, rows=rows))


def one_run(name: str, kills: tuple[float, random.Random] | None) -> dict[str, Any]:
    """The whole chain on a fleet of its own."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-stages-"))
    fleet, killer = Fleet(folder, real=tuple(STAGES)), None
    try:
        fleet.start()
        worker = fleet.add_worker(WORKER)
        wait_for("the worker", lambda: "takes mlx" in fleet.processes.log(WORKER))
        fleet.api.wait_for_dag(DAG)
        began = time.monotonic()
        fleet.api.trigger(DAG, name, CONF)
        if kills is not None:
            killer = Killer(worker.pid, *kills)
        state = wait_for("the end", lambda: ended(fleet, name), 3000)
        seconds = time.monotonic() - began
        tries = {
            task["task_id"] + (f"[{task['map_index']}]" if task["map_index"] >= 0 else ""): task["try_number"]
            for task in fleet.api.tasks(DAG, name)
        }
        killed = killer.stop() if killer else {}
        told = {"run": name, "state": state, "seconds": seconds, "tries": tries, "killed_after_s": killed}
        print(json.dumps(told), flush=True)
        return {**told, "outs": outs(fleet, name)}
    finally:
        if killer is not None:
            killer.stop()
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
