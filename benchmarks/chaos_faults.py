"""What happens to a run in `chaos.py`: the faults, and the fleet they happen to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orchestration as o
import psutil
from fleet_world import DAG, Fleet, wait_for

WORKERS = ("alpha", "beta")
DISK_MB = 512
"""Of the workers' state folders while a fault fills them."""
OTHER_EDGE = "apache-airflow-providers-edge3==5.0.0"
"""Another version of the edge worker than the lock's."""


class World:
    """The fleet, and what the faults need of it. A part of Airflow that ends is started again, as Compose does."""

    def __init__(self, fleet: Fleet, away_s: float, moments: random.Random) -> None:
        self.fleet, self.away_s, self.moments = fleet, away_s, moments
        self.conf: dict[str, Any] = {}
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """No part of Airflow is started again from here on."""
        self._over.set()
        self._keeper.join()

    def _keep(self) -> None:
        while not self._over.wait(3):
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

    def state(self, name: str) -> Path:
        """A worker's folder of all state."""
        return self.fleet.folder / name / "state"

    def again(self, name: str, *options: str, **more: str) -> None:
        """A worker that ended, or is told to end, starts under its name."""
        if name in self.fleet.processes.running:
            self.fleet.processes.stop(name)
        self.fleet.add_worker(name, *options, **more)

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


def undo_commit(world: World, run_id: str) -> str:
    for name in world.fleet.workers:
        o.run_git(world.fleet.folder / name / "checkout", "reset", "-q", "--hard", "HEAD~1")
    o.run_git(world.fleet.origin, "update-ref", "refs/heads/main", "refs/heads/main~1")
    return ""


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


def same_stage_twice(world: World, run_id: str) -> None:
    """A second run of the same code and params: its train stage is the same, and the other worker takes it."""
    world.fleet.api.trigger(DAG, f"{run_id}-again", world.conf)


def second_run_ends(world: World, run_id: str) -> str:
    return f"the second run: {world.fleet.state(f'{run_id}-again', 600)}"


def twin(world: World, run_id: str) -> None:
    """Another worker, with a checkout and state of its own, under the name of the one that trains."""
    world.fleet.add_worker("twin", ADO_WORKER_NAME=world.train(run_id)["hostname"])


def twin_waits(world: World, run_id: str) -> str:
    return _refused(world, run_id, "twin", "is still taken")


def other_version(world: World, run_id: str) -> None:
    """A third worker whose edge provider is another than the server's, from the real package of that version."""
    packages = world.fleet.folder / "other-version"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), OTHER_EDGE]
    subprocess.run(install, check=True)
    root = world.fleet.folder / "gamma" / "checkout"
    world.fleet.add_worker("gamma", PYTHONPATH=os.pathsep.join([str(root), str(packages)]))


def other_version_is_refused(world: World, run_id: str) -> str:
    return _refused(world, run_id, "gamma", "edge provider's version")


def _refused(world: World, run_id: str, name: str, words: str) -> str:
    """What a worker that may not serve said. It must not have taken a task."""
    log = world.fleet.processes.log(name)
    said = next((line.strip() for line in log.splitlines() if words in line), "NOTHING OF IT")
    world.fleet.processes.stop(name)
    world.fleet.workers.pop(name)
    took = any(task["hostname"] == name for task in world.fleet.tasks(run_id))
    return said + (" AND IT TOOK A TASK" if took else "")


def clocks(world: World) -> None:
    """Both workers with a wall clock that a file shifts (benchmarks/clock_shift.c)."""
    library, told = world.fleet.folder / "clock_shift.so", world.fleet.folder / "clock"
    source = str(Path(__file__).with_name("clock_shift.c"))
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), source, "-ldl"], check=True)
    told.write_text("0")
    for name in WORKERS:
        world.again(name, LD_PRELOAD=str(library), CLOCK_SHIFT=str(told))


def clock_jumps(world: World, run_id: str) -> None:
    """Both workers' clocks are ten minutes ahead for 40 seconds, then right again."""
    (world.fleet.folder / "clock").write_text("600")
    time.sleep(40)
    (world.fleet.folder / "clock").write_text("0")


def plain_workers(world: World, run_id: str) -> str:
    for name in WORKERS:
        world.again(name)
    return ""


def small_disks(world: World) -> None:
    """Both workers' state on a small file system of its own (tmpfs: needs root)."""
    for name in WORKERS:
        world.fleet.processes.stop(name)
        shutil.rmtree(world.state(name), ignore_errors=True)
        world.state(name).mkdir()
        size = f"size={DISK_MB}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(world.state(name))], check=True)
        world.again(name, "--no-checks")  # the doctor does not let a worker start on so little


def fill_disk(world: World, run_id: str) -> None:
    """No byte is left where the training writes, for 20 seconds."""
    filler = world.state(world.train(run_id)["hostname"]) / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    time.sleep(20)
    filler.unlink()


def whole_disks(world: World, run_id: str) -> str:
    for name in WORKERS:
        world.fleet.processes.stop(name)
        subprocess.run(["umount", str(world.state(name))], check=True)
        world.fleet.add_worker(name)
    return ""


def unmount(folder: Path) -> None:
    """Whatever `small_disks` mounted below a folder."""
    for disk in psutil.disk_partitions(all=True):
        if Path(disk.mountpoint).is_relative_to(folder):
            subprocess.run(["umount", disk.mountpoint], check=True)


def cut_checkpoint(world: World, run_id: str) -> None:
    """The newest checkpoint ends at a random byte; then the stage is killed."""
    root = world.state(world.train(run_id)["hostname"]) / "workspaces"
    found = lambda: sorted(root.glob(f"{run_id}*/.checkpoints/train/step_*/arrays.safetensors"))  # noqa: E731
    wait_for("two checkpoints", lambda: len(found()) > 1)
    stage = world.child(run_id, "mlx-tasks train")
    stage.suspend()
    newest = found()[-1]
    os.truncate(newest, world.moments.randrange(newest.stat().st_size))
    stage.kill()


@dataclass(frozen=True)
class Fault:
    """One thing that happens.

    before: makes the fleet ready for it. after: undoes what would change later runs; returns what is worth telling.
    sets_clocks: the workers' own times say nothing of how long they were silent.
    """

    told: str
    happen: Callable[[World, str], None]
    after: Callable[[World, str], str] | None = None
    before: Callable[[World], None] | None = None
    sets_clocks: bool = False


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
    "twice": Fault("the same stage asked for by two runs at once", same_stage_twice, second_run_ends),
    "twin": Fault("a second worker under the name of the one that trains", twin, twin_waits),
    "version": Fault("a third worker whose edge provider is another version", other_version, other_version_is_refused),
    "clock": Fault(
        "both workers' clocks ten minutes ahead for 40 s", clock_jumps, plain_workers, clocks, sets_clocks=True
    ),
    "disk": Fault("no byte left on the worker's disk for 20 s", fill_disk, whole_disks, small_disks),
    "cut": Fault("the newest checkpoint cut at a random byte, and the stage killed", cut_checkpoint),
}
