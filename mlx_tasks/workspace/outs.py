"""DVC's side of a node: lock entries from other machines, deps that are missing here, the stage's own outs."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.files import atomic_write_text
from mlx_tasks.workspace.cache_check import drop_rotten, hashes, mend

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

logger = logging.getLogger(__name__)

LockEntry = dict[str, Any]
LOCK_FILE = "dvc.lock"
MAX_METRICS = 40


def merge_lock(workspace: Path, entries: dict[str, LockEntry]) -> bool:
    """Put stages' lock entries into the workspace's dvc.lock; whether that changed it."""
    stages = _read_lock(workspace)
    if all(stages.get(target) == entry for target, entry in entries.items()):
        return False
    from dvc.utils.serialize import dumps_yaml

    # DVC's own writer: it quotes a hash that YAML 1.2 would take for a number ("123e4567").
    atomic_write_text(workspace / LOCK_FILE, dumps_yaml({"schema": "2.0", "stages": {**stages, **entries}}))
    return True


def lock_entry(workspace: Path, target: str) -> LockEntry | None:
    """A stage's entry of dvc.lock, or None."""
    return _read_lock(workspace).get(target)


def locked_outs(workspace: Path) -> dict[str, str]:
    """{out: hash} of every out in dvc.lock."""
    stages = _read_lock(workspace).values()
    return {out["path"]: out.get("md5", "") for stage in stages for out in stage.get("outs", [])}


def entry_digest(entry: LockEntry) -> str:
    """SHA-256 of a lock entry, hex."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def stage_of(repo: Repo, target: str) -> Stage:
    """A stage of dvc.yaml.  Raises: DataError if there is none of that name, or dvc.yaml cannot be read."""
    from dvc.exceptions import DvcException

    try:
        return next(stage for stage in repo.index.stages if stage.addressing == target)
    except StopIteration:
        raise DataError(
            f"dvc.yaml has no stage {target!r}: the run's commit has another chain than the DAG; start the whole "
            "chain, or begin from a version that was made since"
        ) from None
    except DvcException as error:
        raise DataError(f"DVC cannot read dvc.yaml: {error}") from None


def drop_cut_lock(workspace: Path) -> None:
    """Remove DVC's table of who reads and writes what, if a killed process left it half-written: DVC would not go on.

    For whoever holds the workspace's own lock, so that nobody else's entry is lost.
    """
    table = workspace / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(table.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        table.unlink(missing_ok=True)


def fetch_deps(repo: Repo, stage: Stage) -> list[str]:
    """Bring here the outs of earlier stages that this one reads and that are missing or not as dvc.lock has them.

    What this machine's cache has of them is read first; files that rotted come from the remote again.
    Returns: what was brought, relative to the workspace.
    Raises: UnavailableError where the remote lacks one; DataError for a dep that no stage makes and that is not there.
    """
    missing, root = [], Path(repo.root_dir)
    for dep in stage.deps:
        path = Path(dep.fs_path)
        makers = [out for out in repo.index.outs if _overlap(Path(out.fs_path), path)]
        missing += [out for out in makers if out.hash_info and (not out.exists or out.changed_checksum())]
        if not makers and not path.exists():
            raise DataError(f"{stage.addressing} reads {dep.def_path}, which does not exist: check the path")
    names = sorted({str(Path(out.fs_path).relative_to(root)) for out in missing})
    if names:
        if rotten := mend(repo, hashes(missing)):
            logger.warning("cache=%s rotten=%s", repo.cache.local.path, ",".join(rotten))
        _bring(repo, names)
    return names


def drop_rotten_outs(repo: Repo, stage: Stage) -> list[str]:
    """Read what the cache has of a stage's outs; where a file is rotten, the out goes, here and there.

    DVC takes a rotten file for a sound one where a stage has just made the right bytes: it replaces them by what it has
    under their name.
    Returns: the outs that are gone, to be made again.
    """
    rotten = drop_rotten(repo, hashes(stage.outs))
    for out in stage.outs:
        if out.def_path in rotten:
            out.remove()
    return sorted(rotten)


def _bring(repo: Repo, names: list[str]) -> None:
    from dvc.exceptions import DvcException
    from dvc_objects.errors import ObjectFormatError

    try:
        repo.pull(targets=names, force=True)
    except (DvcException, ObjectFormatError) as error:
        raise UnavailableError(f"the DVC remote does not give {', '.join(names)}: {error}") from error


def push_outs(repo: Repo, stage: Stage) -> None:
    """Copy a stage's outs to the DVC remote, as far as it lacks them.  Raises: UnavailableError."""
    from dvc.exceptions import DvcException

    try:
        for objects in stage.get_used_objs().values():
            result = repo.cloud.push(objects)
            if result.failed:
                raise UnavailableError(f"the DVC remote did not take {len(result.failed)} files of {stage.addressing}")
    except (DvcException, OSError) as error:
        raise UnavailableError(f"cannot push the outs of {stage.addressing} to the DVC remote: {error}") from error


def small_metrics(stage: Stage) -> dict[str, float | str]:
    """The numbers and short texts of a stage's metrics files, by dotted name."""
    found: dict[str, float | str] = {}
    for out in stage.outs:
        if out.metric and Path(out.fs_path).exists():
            _flatten(json.loads(Path(out.fs_path).read_text(encoding="utf-8")), "", found)
    return dict(list(found.items())[:MAX_METRICS])


def _read_lock(workspace: Path) -> dict[str, LockEntry]:
    path = workspace / LOCK_FILE
    if not path.exists():
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return (yaml.load(path.read_text(encoding="utf-8"), Loader=loader) or {}).get("stages") or {}


def _flatten(value: Any, name: str, found: dict[str, float | str]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(inner, f"{name}.{key}" if name else str(key), found)
    elif isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 200):
        found[name] = value


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one.is_relative_to(other) or other.is_relative_to(one)
