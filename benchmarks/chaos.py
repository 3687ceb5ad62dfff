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
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import ROOT, save

sys.path.insert(0, str(ROOT / "tests"))

import orchestration as o
import yaml
from chaos_faults import FAULTS, WORKERS, Fault, World, unmount
from fleet_world import DAG, Fleet, wait_for

from mlx_tasks.errors import UnavailableError

STEPS, EVERY = 300, 20
CONF = {"preset": "toy", "overrides": {"train.steps": STEPS, "train.checkpoint_every": EVERY}}
RESUMED = re.compile(r"resumed=\S+ step=(\d+)")
PROGRESS = re.compile(r"\[train[^\]]*\] (\d+)/\d+")


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
    world = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        fleet.start()
        world = World(fleet, given.away, moments)
        for name in WORKERS:
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
        if world is not None:
            world.close()
        fleet.stop()
        unmount(folder)
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
    world.conf = conf
    if fault is not None and fault.before is not None:
        fault.before(world)
    world.fleet.api.trigger(DAG, run_id, conf)
    logs = _Logs(world.fleet)
    wait_for("training", lambda: logs.events(), 240)
    moment = 0.0
    if fault is not None:
        moment = moments.uniform(0.5, 6.0)
        time.sleep(moment)
        fault.happen(world, run_id)
    state = wait_for("the end", lambda: _ended(world, run_id), 900)
    note = fault.after(world, run_id) if fault is not None and fault.after is not None else ""
    train, (told, resumed) = _train(world, run_id), logs.resumed()
    times = [_seconds(at) for at, _, _ in logs.events()]
    silence = max((b - a for a, b in pairwise(times)), default=0)
    return {
        "run": name,
        "note": note,
        "state": state,
        "moment_s": moment,
        "tries": train["try_number"] if train else None,
        "told_step": told,
        "resumed_step": resumed,
        "longest_silence_s": None if fault is not None and fault.sets_clocks else silence,
        "seconds": time.monotonic() - began,
        "teacher": teacher(world.fleet, run_id) if state == "success" else None,
    }


def _ended(world: World, run_id: str) -> str | None:
    """How the run ended; None while it goes on, or while nobody can say."""
    try:
        state = world.fleet.api.run(DAG, run_id)["state"]
    except UnavailableError:
        return None
    return state if state in ("success", "failed") else None


def _train(world: World, run_id: str) -> dict[str, Any] | None:
    try:
        return world.train(run_id)
    except UnavailableError:
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
    if row["note"]:
        same += f"; {row['note']}"
    silent = "?" if row["longest_silence_s"] is None else row["longest_silence_s"]
    return f"{told} silent {silent:>3} s, {row['seconds']:>4.0f} s in all{same}"


if __name__ == "__main__":
    main()
