"""Where a bundle came from: enough to bring it back with one `dvc repro` at one commit."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import yaml

from mlx_tasks.config import Config
from mlx_tasks.errors import UnavailableError
from mlx_tasks.files import read_json
from mlx_tasks.hardware import Hardware

LIBRARIES = ("mlx", "numpy", "torch", "stable-baselines3", "optuna", "gymnasium", "dvc", "mlflow", "great-expectations")


def collect(root: Path, config: Config, hardware: Hardware, winner: dict[str, Any]) -> dict[str, Any]:
    """lineage.json: commit, data, params, DVC hashes, versions, device, and which candidate won."""
    return {
        "winner": winner,
        "run": os.environ.get("MLX_TASKS_RUN_ID") or None,
        "code": code(root),
        "dataset": dataset(root),
        "params_digest": config.digest,
        "params": _for_others(config),
        "dvc": dvc_hashes(root),
        "versions": versions(),
        "device": hardware.as_dict() | {"system": platform.platform()},
    }


def _for_others(config: Config) -> dict[str, Any]:
    """The params without this machine's folders and the names of its neighbours: a bundle is made to be given away.

    The run's commit has them whole.
    """
    tree = config.dump()
    place = PurePath(config.data.path)
    if place.is_absolute() or config.data.path.startswith("~"):
        tree["data"]["path"] = place.name
    tree["train"]["hosts"] = [f"machine {number}" for number in range(1, len(config.train.hosts) + 1)]
    return tree


def code(root: Path) -> dict[str, Any]:
    """{commit, dirty}: the commit that names this run (MLX_TASKS_RUN_COMMIT, or HEAD), and whether files differ.

    `commit` is None outside a repository. A run's workspace changes params.yaml and dvc.lock by itself and commits them
    on the run's branch, so those two do not count as edits.
    """
    from mlx_tasks.workspace.git import git

    try:
        head = git(root, "rev-parse", "HEAD")
        changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!params.yaml", ":!dvc.lock")
    except UnavailableError:
        return {"commit": os.environ.get("MLX_TASKS_RUN_COMMIT") or None, "dirty": None}
    return {"commit": os.environ.get("MLX_TASKS_RUN_COMMIT") or head, "dirty": bool(changed)}


def dataset(root: Path) -> dict[str, Any]:
    """What validate said of the data: fingerprint and counts; empty if it left no summary."""
    path = root / "work" / "dataset" / "summary.json"
    return read_json(path) if path.is_file() else {}


def dvc_hashes(root: Path) -> dict[str, dict[str, Any]]:
    """Path -> {stage, hash, size} of every out that dvc.lock names; empty before the first `dvc repro`."""
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    stages = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages", {})
    return {
        out["path"]: {"stage": name, "hash": f"{out.get('hash', 'md5')}:{out.get('md5')}", "size": out.get("size")}
        for name, stage in stages.items()
        for out in stage.get("outs", [])
    }


def versions() -> dict[str, str]:
    """Python's and the libraries' versions; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
