"""The real validate and train stages as nodes: `kill -9` of a training, a retry, the weights of one never killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orchestration as o
import psutil
import pytest

from mlx_tasks.events import parse_event

TOY = {
    "model.block_out_channels": [8, 16],
    "model.attention_head_dim": 8,
    "train.steps": 24,
    "train.batch_size": 8,
    "train.checkpoint_every": 4,
    "train.sample_every": 24,
    "train.warmup_steps": 2,
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A checkout of this project as it stands, its own stages included."""
    folder = tmp_path_factory.mktemp("resume") / "checkout"
    for name in ("mlx_tasks", "include", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (o.ROOT / name).is_dir() else shutil.copy2
        copy(o.ROOT / name, target)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy2(o.ROOT / name, folder / name)
    o.run_git(folder, "init", "-q", "-b", "main")
    o.run_git(folder, "add", "--all")
    o.run_git(folder, "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "base")
    return folder


def start(env: dict[str, str], command: str, spec: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_tasks", command, "--spec", json.dumps(spec)],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=env["ADO_STATE"],
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return [event for line in output.splitlines() if (event := parse_event(line))][-1]


def stage_of(node: subprocess.Popen[str]) -> psutil.Process:
    """The process that computes, below a node's shell."""
    return next(p for p in psutil.Process(node.pid).children(recursive=True) if "train" in p.cmdline()[-1:])


def teacher(env: dict[str, str], run: dict[str, Any]) -> str:
    """SHA-256 of the teacher's weights."""
    path = Path(env["ADO_STATE"]) / "workspaces" / run["slug"] / "work/teacher/unet/diffusion_pytorch_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_training_killed_and_retried_ends_with_the_weights_of_one_never_killed(repository, tmp_path):
    remote = {"ADO_DVC_REMOTE": str(tmp_path / "remote"), "MLX_TASKS_EVENTS": "1"}
    killed, whole = (o.environment(repository, tmp_path / name, **remote) for name in ("killed", "whole"))
    form = {"run_id": "toy", "form": {"overrides": TOY}}
    run = finish(start(killed, "open-run", form))
    validated = finish(start(killed, "node", {"run": run, "stage": "validate"}))
    assert validated["metrics"]["accepted"] == 1797
    train = {"run": run, "stage": "train", "locks": {"validate": validated["lock"]}}

    node = start(killed, "node", train)
    checkpoints = Path(killed["ADO_STATE"]) / "workspaces" / run["slug"] / ".checkpoints" / "train"
    deadline = time.monotonic() + 120
    while not any(checkpoints.rglob("*.safetensors")):
        assert node.poll() is None and time.monotonic() < deadline, node.communicate()[0]
        time.sleep(0.01)
    stage_of(node).kill()
    failed = finish(node, code=137)
    assert (failed["status"], failed["message"]) == ("failed", "killed by signal 9")
    resumed = finish(start(killed, "node", train))
    assert resumed["status"] == "ran"

    # Another machine, on which nothing is cached: the dataset comes from the remote, the training runs in one go.
    other = finish(start(whole, "open-run", form))
    trained = finish(start(whole, "node", {**train, "run": other}))
    assert trained["status"] == "ran"
    assert teacher(killed, run) == teacher(whole, other)
    assert trained["lock"]["deps"] == resumed["lock"]["deps"]
    assert finish(start(killed, "node", train))["status"] == "cached"
