"""DVC's side of a node: lock entries from other machines, deps that are missing here, the stage's own outs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.errors import DataError, UnavailableError

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

LockEntry = dict[str, Any]
LOCK_FILE = "dvc.lock"
MAX_METRICS = 40


def merge_lock(workspace: Path, entries: dict[str, LockEntry]) -> bool:
    """Put stages' lock entries into the workspace's dvc.lock; whether that changed it."""
    from dvc.utils.serialize import dump_yaml, load_yaml

    path = workspace / LOCK_FILE
    lock = load_yaml(str(path)) if path.exists() else {"schema": "2.0", "stages": {}}
    stages = lock.setdefault("stages", {})
    changed = {target: entry for target, entry in entries.items() if stages.get(target) != entry}
    if changed:
        stages.update(changed)
        dump_yaml(str(path), lock)
    return bool(changed)


def lock_entry(workspace: Path, target: str) -> LockEntry | None:
    """A stage's entry of dvc.lock, or None."""
    from dvc.utils.serialize import load_yaml

    path = workspace / LOCK_FILE
    return load_yaml(str(path)).get("stages", {}).get(target) if path.exists() else None


def entry_digest(entry: LockEntry) -> str:
    """SHA-256 of a lock entry, hex."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def stage_of(repo: Repo, target: str) -> PipelineStage:
    """A stage of dvc.yaml.  Raises: DataError if there is none of that name."""
    from dvc.exceptions import DvcException

    try:
        return repo.stage.collect(target)[0]
    except (DvcException, IndexError) as error:
        raise DataError(f"dvc.yaml has no stage {target!r}: {error}") from None


def fetch_deps(repo: Repo, stage: PipelineStage) -> list[str]:
    """Bring here the outs of earlier stages that this one reads and that are missing or not as dvc.lock has them.

    Returns: what was brought, relative to the workspace.
    Raises: UnavailableError where the remote lacks one; DataError for a dep that no stage makes and that is not there.
    """
    from dvc.exceptions import DvcException

    missing, root = [], Path(repo.root_dir)
    for dep in stage.deps:
        path = Path(dep.fs_path)
        makers = [out for out in repo.index.outs if _overlap(Path(out.fs_path), path)]
        missing += [out for out in makers if out.hash_info and out.changed_checksum()]
        if not makers and not path.exists():
            raise DataError(f"{stage.addressing} reads {dep.def_path}, which does not exist: check the path")
    names = sorted({str(Path(out.fs_path).relative_to(root)) for out in missing})
    if names:
        try:
            repo.pull(targets=names, force=True)
        except DvcException as error:
            raise UnavailableError(f"the DVC remote does not give {', '.join(names)}: {error}") from error
    return names


def small_metrics(stage: PipelineStage) -> dict[str, float | str]:
    """The numbers and short texts of a stage's metrics files, by dotted name."""
    found: dict[str, float | str] = {}
    for out in stage.outs:
        if out.metric and Path(out.fs_path).exists():
            _flatten(json.loads(Path(out.fs_path).read_text(encoding="utf-8")), "", found)
    return dict(list(found.items())[:MAX_METRICS])


def _flatten(value: Any, name: str, found: dict[str, float | str]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(inner, f"{name}.{key}" if name else str(key), found)
    elif isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 200):
        found[name] = value


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one.is_relative_to(other) or other.is_relative_to(one)
