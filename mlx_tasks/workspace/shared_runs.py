"""DVC's run cache through the store: what one worker computed, no other computes again.

    REMOTE/runs/KEY[:2]/KEY/VALUE      DVC's own layout: a stage's lock entry, by what it reads and by the entry itself
    REMOTE/records/DIGEST.json         how the stage went, by the digest of the lock entry

`dvc pull --run-cache` brings every run that was ever made; a node asks for those of its own stage alone. An entry is
written when its outs are in the store. None of this fails a stage: where the store is away, the stage computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlx_tasks.errors import InterruptedStageError
from mlx_tasks.files import atomic_folder, atomic_write_bytes
from mlx_tasks.workspace.outs import LockEntry, entry_digest, stage_of
from mlx_tasks.workspace.paths import Places
from mlx_tasks.workspace.run_cache import newest_run, run_folder, run_key

if TYPE_CHECKING:
    from dvc.repo import Repo

Say = Callable[[str], None]


def record_file(places: Places, entry: LockEntry) -> Path:
    """Where this machine keeps the record of the stage that made a lock entry."""
    return places.dvc_cache / _record(entry)


def bring(places: Places, repo: Repo, target: str, say: Say) -> None:
    """Bring the newest run of this stage on the same deps and params that any worker made: outs, record, lock entry.

    Nothing where all tasks run on one machine (no ADO_GIT_REMOTE), or where this one has run it itself.
    """
    if not places.git_remote:
        return
    with _tolerant(say, "asked"):
        key = run_key(stage_of(repo, target))
        if key is None or newest_run(repo, key):
            return
        store, root = _store(places)
        there = _runs(root, key)
        if found := store.find(there) if store.exists(there) else []:
            _bring(places, repo, store, root, key, max(found, key=store.modified))
            say("brought what the worker that ran this before has made")


def tell(places: Places, repo: Repo, target: str, entry: LockEntry, say: Say) -> None:
    """Let the other workers know of a stage whose outs are in the store."""
    if not places.git_remote:
        return
    with _tolerant(say, "told"):
        key = run_key(stage_of(repo, target))
        newest = newest_run(repo, key) if key else None
        if key is None or newest is None:
            return
        store, root = _store(places)
        there = f"{_runs(root, key)}/{newest[0].name}"
        if store.exists(there):
            return
        record = record_file(places, entry)
        if record.is_file():
            store.pipe_file(f"{root}/{_record(entry)}", record.read_bytes())
        store.pipe_file(there, newest[0].read_bytes())


def _bring(places: Places, repo: Repo, store: Any, root: str, key: str, path: str) -> None:
    """The entry comes last: DVC takes a stage that has one for done.  Raises: OSError where a file does not come."""
    content = store.cat_file(path)
    entry = yaml.safe_load(content)
    for objects in repo.stage_cache._create_stage(entry).get_used_objs().values():
        if failed := repo.cloud.pull(objects).failed:
            raise OSError(f"{len(failed)} files of its outs are not there")
    record = record_file(places, entry)
    if not record.exists() and store.exists(f"{root}/{_record(entry)}"):
        atomic_write_bytes(record, store.cat_file(f"{root}/{_record(entry)}"))
    with atomic_folder(run_folder(repo, key)) as fresh:
        (fresh / path.rpartition("/")[2]).write_bytes(content)


def _runs(root: str, key: str) -> str:
    return f"{root}/runs/{key[:2]}/{key}"


def _record(entry: LockEntry) -> str:
    return f"records/{entry_digest(entry)}.json"


def _store(places: Places) -> tuple[Any, str]:
    from mlx_tasks.workspace.store import open_store

    return open_store(places)


@contextlib.contextmanager
def _tolerant(say: Say, what: str) -> Iterator[None]:
    """Whatever the store says is told; the stage computes, or another worker will."""
    try:
        yield
    except InterruptedStageError:  # from the node's own handler of SIGTERM
        raise
    except Exception as error:  # a store raises what it likes
        say(f"the store cannot be {what} what workers have run: {error}")
