"""DVC's run cache on this machine, which has no public door: lock entries of finished stages, by what they read."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage


def run_key(stage: Stage) -> str | None:
    """What DVC files a stage's runs under, from its deps as they are here and its params.

    None for a stage that it never holds (without deps, or with an out that persists).
    """
    from dvc.stage.cache import _can_hash, _get_stage_hash

    stage.save_deps()
    return _get_stage_hash(stage) if _can_hash(stage) else None


def newest_run(repo: Repo, key: str) -> tuple[Path, dict[str, Any]] | None:
    """(file, lock entry) of the newest run under a key.

    What a killed process left half-written goes: DVC does not get past a key without an entry.
    """
    folder = run_folder(repo, key)
    if not folder.is_dir():
        return None
    for path in sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True):
        entry: Any = repo.stage_cache._load_cache(key, path.name)
        if entry:
            return path, entry
    with contextlib.suppress(OSError):
        folder.rmdir()
    return None


def run_folder(repo: Repo, key: str) -> Path:
    """Where the runs under a key are kept, by the hash of their lock entries."""
    return Path(repo.stage_cache.cache_dir) / key[:2] / key
