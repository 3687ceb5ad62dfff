"""What does a run lose when something dies under it?  `make chaos`

    python benchmarks/chaos.py [--only NAME ...] [--away 300] [--seed 0]

A control plane and two workers that share no disk (PostgreSQL, Airflow with edge workers, MLflow, an S3 server; as in
tests/fleet_world.py), and a chain whose validate and train stages are the real ones on digits. Each run trains the same
teacher; at a random moment of its training one thing happens. The table tells how often the train task began, from
which optimiser step it went on and how far it had told to be, the longest time without a line of training (undisturbed
about five seconds), how long the run took, and whether the weights' hash is that of the run which nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import ROOT, save

sys.path.insert(0, str(ROOT / "tests"))

import orchestration as o
import psutil
import yaml
from fleet_world import DAG, Fleet, wait_for

STEPS, EVERY = 300, 20
CONF = {"preset": "toy", "overrides": {"train.steps": STEPS, "train.checkpoint_every": EVERY}}
RESUMED = re.compile(r"resumed=\S+ step=(\d+)")
PROGRESS = re.compile(r"\[train[^\]]*\] (\d+)/\d+")


class World:
    """The fleet, and what the faults need of it. A part of Airflow that ends is started again, as Compose does."""

    def __init__(self, fleet: Fleet, away_s: float) -> None:
        self.fleet, self.away_s = fleet, away_s
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        while True:
            time.sleep(3)
            for name in ("scheduler", "dag-processor", "api-server"):
                process = self.fleet.processes.running.get(name)
                if process is not None and process.poll() is not None:
                    self.fleet.start_airflow(name)

    def train(self, run_id: str) -> dict[str, Any]:
        """Airflow's word on the train task."""
        return next(task for task in self.fleet.tasks(run_id) if task["task_id"] == "train")

    def host(self, run_id: str) -> psutil.Process:
        """The worker that trains."""
        return psutil.Process(self.fleet.processes.running[self.train(run_id)["hostname"]].pid)

    def child(self, run_id: str, words: str) -> psutil.Process:
        """A process below that worker whose command line holds these words."""
        found = [p for p in self.host(run_id).children(recursive=True) if words in " ".join(_command(p))]
        return found[0]

    def restart(self, name: str, start: Callable[[], Any], number: int = signal.SIGKILL, after_s: float = 5) -> None:
        """End a part of the control plane, and start it again after some seconds."""
        self.fleet.processes.stop(name, number)
        time.sleep(after_s)
        start()

    def pause(self, name: str, seconds: float) -> None:
        """A part that answers nobody for so long."""
        process = self.fleet.processes.running[name]
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGCONT)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill_stage(world: World, run_id: str) -> None:
    world.child(run_id, "mlx-tasks train").kill()


def kill_task(world: World, run_id: str) -> None:
    world.child(run_id, "mlx_tasks node").parent().kill()


def kill_worker(world: World, run_id: str) -> None:
    name, root = world.train(run_id)["hostname"], world.host(run_id)
    for process in (root, *root.children(recursive=True)):
        process.kill()
    world.fleet.processes.running.pop(name).wait()
    world.fleet.add_worker(name)


def kill_scheduler(world: World, run_id: str) -> None:
    world.restart("scheduler", lambda: world.fleet.start_airflow("scheduler"))


def kill_api_server(world: World, run_id: str) -> None:
    world.restart("api-server", lambda: world.fleet.start_airflow("api-server"))


def api_server_away(world: World, run_id: str) -> None:
    world.restart("api-server", lambda: world.fleet.start_airflow("api-server"), after_s=world.away_s)


def kill_postgres(world: World, run_id: str) -> None:
    world.restart("postgres", lambda: world.fleet.postgres.start(world.fleet.processes))


def kill_mlflow(world: World, run_id: str) -> None:
    world.restart("mlflow", world.fleet.start_mlflow)


def store_away(world: World, run_id: str) -> None:
    world.pause("store", 40)


def push_commit(world: World, run_id: str) -> None:
    """Another optimiser's step size in the train stage's code, on main, pulled by both workers in mid-run."""
    clone = Path(tempfile.mkdtemp(dir=world.fleet.folder)) / "clone"
    o.run_git(world.fleet.folder, "clone", "-q", str(world.fleet.origin), str(clone))
    path = clone / "mlx_tasks" / "training" / "loop.py"
    path.write_text(path.read_text() + '\nraise RuntimeError("code of a later commit")\n')
    for setting in (("user.name", "someone"), ("user.email", "someone@example.org")):
        o.run_git(clone, "config", *setting)
    o.run_git(clone, "commit", "-qam", "a commit in mid-run")
    o.run_git(clone, "push", "-q")
    for name in world.fleet.workers:
        o.run_git(world.fleet.folder / name / "checkout", "pull", "-q")


def undo_commit(world: World) -> None:
    for name in world.fleet.workers:
        o.run_git(world.fleet.folder / name / "checkout", "reset", "-q", "--hard", "HEAD~1")
    o.run_git(world.fleet.origin, "update-ref", "refs/heads/main", "refs/heads/main~1")


def rot_cache(world: World, run_id: str) -> None:
    """A byte of every file in the caches of both workers is another; then the stage is killed, and needs them again."""
    for name in world.fleet.workers:
        for path in (world.fleet.folder / name / "state" / "dvc-cache" / "files").rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
    kill_worker(world, run_id)


@dataclass(frozen=True)
class Fault:
    """One thing that happens; `after` undoes what would change later runs."""

    told: str
    happen: Callable[[World, str], None]
    after: Callable[[World], None] | None = None


FAULTS = {
    "stage": Fault("kill -9 of the stage", kill_stage),
    "task": Fault("kill -9 of the task", kill_task),
    "worker": Fault("kill -9 of the worker and all it started", kill_worker),
    "scheduler": Fault("kill -9 of the scheduler", kill_scheduler),
    "api-server": Fault("kill -9 of the API server", kill_api_server),
    "api-server-away": Fault("the API server away for {away:g} s", api_server_away),
    "postgres": Fault("kill -9 of PostgreSQL", kill_postgres),
    "mlflow": Fault("kill -9 of MLflow", kill_mlflow),
    "store-away": Fault("the store answers nobody for 40 s", store_away),
    "commit": Fault("a commit pushed and pulled in mid-run", push_commit, undo_commit),
    "cache": Fault("rotten files in both caches, and the worker killed", rot_cache),
}


def main() -> None:
    """Run, disturb, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--away", type=float, default=300.0, help="seconds without the API server")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--name", default="chaos", help="name of the results file")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    fleet, rows = Fleet(folder, real=("validate", "train")), []
    config = {"steps": STEPS, "checkpoint_every": EVERY, "away_s": given.away, "seed": given.seed}
    question = "What does a run lose when something dies under it?"
    moments = random.Random(given.seed)
    try:
        fleet.start()
        world = World(fleet, given.away)
        for name in ("alpha", "beta"):
            fleet.add_worker(name)
        undisturbed = one_run(world, "undisturbed", None, moments)
        print(line(undisturbed), flush=True)
        for name in given.only:
            fault = FAULTS[name]
            row = one_run(world, name, fault, moments)
            row |= {"fault": fault.told.format(away=given.away), "equal": row["teacher"] == undisturbed["teacher"]}
            rows.append(row)
            print(line(row), flush=True)
            saved = save(given.name, question=question, config=config, rows=[undisturbed, *rows])
    finally:
        fleet.stop()
    print(saved)
    shutil.rmtree(folder, ignore_errors=True)


def one_run(world: World, name: str, fault: Fault | None, moments: random.Random) -> dict[str, Any]:
    """Train once, disturbed or not, with nothing in a cache that would spare it."""
    run_id = f"chaos-{name}"
    conf = json.loads(json.dumps(CONF))
    began = time.monotonic()
    # When sample grids are drawn changes no weight, and keeps the stage from being taken from the cache.
    conf["overrides"]["train.sample_every"] = STEPS + 1 + len([*world.fleet.folder.glob("ran-*")])
    (world.fleet.folder / f"ran-{name}").touch()
    world.fleet.api.trigger(DAG, run_id, conf)
    logs = _Logs(world.fleet)
    wait_for("training", lambda: logs.events(), 240)
    moment = 0.0
    if fault is not None:
        moment = moments.uniform(0.5, 6.0)
        time.sleep(moment)
        fault.happen(world, run_id)
    state = wait_for("the end", lambda: _ended(world, run_id), 900)
    if fault is not None and fault.after is not None:
        fault.after(world)
    train, (told, resumed) = _train(world, run_id), logs.resumed()
    times = [_seconds(at) for at, _, _ in logs.events()]
    silence = max((b - a for a, b in pairwise(times)), default=0)
    return {
        "run": name,
        "state": state,
        "moment_s": moment,
        "tries": train["try_number"] if train else None,
        "told_step": told,
        "resumed_step": resumed,
        "longest_silence_s": silence,
        "seconds": time.monotonic() - began,
        "teacher": teacher(world.fleet, run_id) if state == "success" else None,
    }


def _ended(world: World, run_id: str) -> str | None:
    """How the run ended; None while it goes on, or while nobody can say."""
    try:
        state = world.fleet.api.run(DAG, run_id)["state"]
    except Exception:
        return None
    return state if state in ("success", "failed") else None


def _train(world: World, run_id: str) -> dict[str, Any] | None:
    try:
        return world.train(run_id)
    except Exception:
        return None


def _seconds(clock: str) -> int:
    hours, minutes, seconds = map(int, clock.split(":"))
    return 3600 * hours + 60 * minutes + seconds


class _Logs:
    """What the workers' logs tell of training, from now on."""

    def __init__(self, fleet: Fleet) -> None:
        self._paths = [fleet.processes.logs / f"{name}.log" for name in fleet.workers]
        self._from = {path: path.stat().st_size for path in self._paths}

    def events(self) -> list[tuple[str, str, int]]:
        """(time, "step" or "resumed", step), in order of time."""
        told = []
        for path in self._paths:
            with path.open(errors="replace") as file:
                file.seek(self._from[path])
                for text in file:
                    for kind, pattern in (("step", PROGRESS), ("resumed", RESUMED)):
                        if found := pattern.search(text):
                            told.append((text[:8], kind, int(found[1])))
        return sorted(told, key=lambda one: one[0])

    def resumed(self) -> tuple[int | None, int | None]:
        """(the last step told before training went on from a checkpoint, that checkpoint's step), if it ever did."""
        last = None
        for _, kind, step in self.events():
            if kind == "resumed":
                return last, step
            last = step
        return None, None


def teacher(fleet: Fleet, run_id: str) -> str:
    """The hash of the weights that a run made, from what it committed."""
    branches = o.run_git(fleet.origin, "for-each-ref", "--format=%(refname)", "refs/heads/runs").split()
    branch = next(name for name in branches if name.rpartition("/")[2].startswith(run_id))
    lock = yaml.safe_load(o.run_git(fleet.origin, "show", f"{branch}:dvc.lock"))
    digest = next(out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"] == "work/teacher")
    files = json.loads(fleet.content(f"dvc/files/md5/{digest[:2]}/{digest[2:]}"))
    return next(file["md5"] for file in files if file["relpath"].endswith("unet/diffusion_pytorch_model.safetensors"))


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    same = "" if "equal" not in row else "  the same teacher" if row["equal"] else "  ANOTHER TEACHER"
    went_on = f"at {row['told_step'] or 0}, went on from {row['resumed_step']}" if row["resumed_step"] else ""
    told = f"{row.get('fault', 'nothing happens'):<52} {row['state']:<8} {row['tries']} tries  {went_on:<26}"
    return f"{told} silent {row['longest_silence_s']:>3} s, {row['seconds']:>4.0f} s in all{same}"


if __name__ == "__main__":
    main()
