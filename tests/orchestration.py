"""A repository of its own for tests of the orchestration: the real package and dvc.yaml, with stages that take no time.

Git, DVC, processes, locks and Airflow are the real ones; only what a stage computes is replaced, so that a whole chain
takes seconds and a test decides how a stage ends (`behaviour.json` in the checkout, read when the stage runs).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

STAGE = '''"""Writes what dvc.yaml says that this stage writes, and ends as behaviour.json says."""

import json
import os
import signal
import time
from pathlib import Path

import yaml

from mlx_tasks import errors


def run(context, **arguments):
    behaviour = json.loads(Path(os.environ["TEST_BEHAVIOUR"]).read_text()).get(context.target, {})
    context.checkpoints.mkdir(parents=True, exist_ok=True)
    tries = context.checkpoints / "tries"
    tries.write_text(str(int(tries.read_text()) + 1 if tries.exists() else 1))
    for name in ("MLX_TASKS_MICRO_BATCH", "MLX_TASKS_RUN_COMMIT"):
        print(name, os.environ.get(name))
    if int(tries.read_text()) <= behaviour.get("fails", 0):
        kind = behaviour["kind"]
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            context.progress.update(1, 2)
            Path(behaviour["started"]).write_text(str(os.getpid()))
            time.sleep(600)
        raise {"memory": MemoryError("no"), "data": errors.DataError("bad"), "diverged": errors.DivergedError(3, 0.5),
               "interrupted": errors.InterruptedStageError("stop"), "bug": KeyError("bug")}[kind]
    name = context.target.partition("@")[0]
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    stage = stages[name]
    outs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    read = {dep for one in stages.values() for dep in one.get("deps", [])}
    for out in (one if isinstance(one, str) else next(iter(one)) for one in outs):
        for key, value in arguments.items():
            out = out.replace("${item.%s}" % key, str(value))
        path = context.root / out
        if not path.suffix:
            path = path / "data.json"
        within = [context.root / dep for dep in read if dep.startswith(out + "/")]  # what later stages read of it
        for file in (path, *within):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"target": context.target, "seed": context.config.seed}))
    context.progress.update(2, 2)
    if behaviour.get("refused"):
        raise errors.GateRefused(["not good enough"])
'''


def make_repository(folder: Path, real: tuple[str, ...] = ()) -> Path:
    """A fresh git checkout of this project's files as they stand, committed; stages but the `real` ones are tiny."""
    repository = folder / "checkout"
    names = ("dags", "plugins", "include", "mlx_tasks", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore")
    for name in (*names, "dvc.yaml", "params.yaml"):
        source, target = ROOT / name, repository / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    from mlx_tasks.catalog import STAGES

    for stage in (stage for stage in STAGES.values() if stage.name not in real):
        (repository / (stage.module.replace(".", "/") + ".py")).write_text(STAGE, encoding="utf-8")
    (repository / "include" / "expectations").mkdir(exist_ok=True)
    (repository / "include" / "expectations" / "kept.json").write_text("{}")
    for package in ("data", "diffusion", "models", "training", "distillation", "samplers", "metrics", "search", "rl"):
        (repository / "mlx_tasks" / package).mkdir(exist_ok=True)
    run_git(repository, "init", "-q", "-b", "main")
    run_git(repository, "config", "user.name", "A User")
    run_git(repository, "config", "user.email", "user@example.org")
    run_git(repository, "add", "--all")
    run_git(repository, "commit", "-qm", "base")
    return repository


def environment(repository: Path, state: Path, **more: str) -> dict[str, str]:
    """The environment of a process that works on that repository, without MLflow."""
    behaviour = state / "behaviour.json"
    behaviour.parent.mkdir(parents=True, exist_ok=True)
    if not behaviour.exists():
        behaviour.write_text("{}")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLX_TASKS_", "ADO_", "AIRFLOW", "MLFLOW_"))}
    return {
        **kept,
        "ADO_REPOSITORY": str(repository),
        "ADO_STATE": str(state),
        "MLX_TASKS_LOCKS": str(state / "machine-locks"),
        "MLX_TASKS_THREADS": "1",
        "TEST_BEHAVIOUR": str(behaviour),
        "PYTHONPATH": str(repository),
        **more,
    }


def run_git(folder: Path, *arguments: str) -> str:
    """A git command's output."""
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def mlx_tasks(env: dict[str, str], *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`mlx-tasks` as a process of its own, its two outputs as one."""
    return subprocess.run(
        [sys.executable, "-m", "mlx_tasks", *arguments],
        env=env, input=stdin, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
        cwd=env["ADO_STATE"],
    )  # fmt: skip


def result_of(output: str) -> dict[str, Any]:
    """The last event that a command told."""
    from mlx_tasks.events import parse_event

    events = [event for line in output.splitlines() if (event := parse_event(line))]
    assert events, output
    return events[-1]


def open_run(env: dict[str, str], run_id: str = "manual__2026-01-02T03:04:05+00:00", **form: Any) -> dict[str, Any]:
    """The run that a filled-in form opens."""
    done = mlx_tasks(env, "open-run", "--spec", json.dumps({"run_id": run_id, "form": form}))
    assert done.returncode == 0, done.stdout
    return result_of(done.stdout)


def spec(
    run: dict[str, Any],
    stage: str,
    locks: dict[str, Any] | None = None,
    commit: str = "",
    fan_out: str = "",
    **arguments: int,
) -> str:
    """What a node is asked to do, as JSON."""
    values = {"run": run, "stage": stage, "arguments": arguments, "locks": locks or {}, "commit": commit}
    return json.dumps(values | {"fan_out": fan_out})


def node(env: dict[str, str], *args: Any, **kwargs: Any) -> tuple[int, dict[str, Any], str]:
    """(exit code, result, output) of a node; arguments as `spec`."""
    done = mlx_tasks(env, "node", "--spec", "-", stdin=spec(*args, **kwargs))
    return done.returncode, result_of(done.stdout), done.stdout


def workspace(env: dict[str, str], run: dict[str, Any]) -> Path:
    """A run's workspace."""
    return Path(env["ADO_STATE"]) / "workspaces" / run["slug"]
