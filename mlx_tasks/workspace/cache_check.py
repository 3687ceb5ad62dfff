"""Whether a cached file is still what its name says: DVC trusts a read-only one without reading it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_tasks.workspace.run_cache import newest_run, run_key

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.state import State

MEMORY = "checked"
"""Folder in the cache that remembers which files were read, by path, inode, size and modification time."""


def drop_rotten(repo: Repo, wanted: Mapping[str, str]) -> dict[str, str]:
    """Take files whose MD5 is not their name out of the repository's cache.

    A file that was read before and has the same inode, size and modification time is not read again, so damage that
    leaves all three as they were is not seen. DVC's own memory is of no use here: it notes a file as read when it has
    only been linked.

    wanted: {out: MD5, with .dir for a folder}, whose files are looked at.
    Returns: those that lost a file.
    """
    from dvc_data.hashfile.state import State

    cache = repo.cache.local
    place = Path(cache.path).parent.parent / MEMORY  # beside files/md5
    for last in (False, True):
        try:
            with contextlib.closing(State(root_dir=cache.path, tmp_dir=str(place))) as memory:
                return {name: oid for name, oid in wanted.items() if _drop(cache, oid, memory)}
        except sqlite3.DatabaseError:  # it rots like anything else, and can be had again
            if last:
                raise
            shutil.rmtree(place, ignore_errors=True)
    raise AssertionError("unreachable")


def mend(repo: Repo, wanted: Mapping[str, str]) -> list[str]:
    """Take rotten files of these objects out of the cache and ask the remote for them; what it lacks stays away.

    Returns: the outs that had rotten files.
    """
    from dvc.exceptions import DvcException
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_objects.errors import ObjectFormatError

    cache, had = repo.cache.local, set[str]()
    for _ in range(2):  # a folder's files are known once its list is a sound one
        rotten = drop_rotten(repo, wanted)
        if not rotten:
            break
        had |= set(rotten)
        with contextlib.suppress(DvcException, ObjectFormatError, OSError):
            repo.cloud.pull([HashInfo(cache.hash_name, oid) for oid in rotten.values()])
            files = {one for oid in rotten.values() for one in _oids(cache, oid)}
            repo.cloud.pull([HashInfo(cache.hash_name, one) for one in files])
    return sorted(had)


def mend_what_replaces(repo: Repo, stage: Stage) -> list[str]:
    """Mend what DVC would bring from the cache in the place of running this stage, whose deps are all here.

    Returns: the outs that had rotten files.
    """
    wanted, key = hashes(stage.outs), run_key(stage)
    remembered = newest_run(repo, key) if key else None
    entry = remembered[1] if remembered else {}
    kept = {out["path"]: out["md5"] for out in entry.get("outs", []) if "md5" in out}
    return sorted({*mend(repo, wanted), *mend(repo, kept)})


def hashes(outs: Iterable[Output]) -> dict[str, str]:
    """{out: its hash} of those that dvc.lock knows."""
    return {out.def_path: out.hash_info.value for out in outs if out.hash_info and out.hash_info.value}


def _drop(cache: HashFileDB, oid: str, memory: State) -> bool:
    """Whether a file of this object was rotten; all that are go, and so does a folder's list, by which DVC takes the
    folder as whole.
    """
    rotten = [one for one in _oids(cache, oid) if _is_rotten(cache, one, memory)]
    for one in {*rotten, *([oid] if rotten else [])}:
        Path(cache.oid_to_path(one)).unlink(missing_ok=True)
    return bool(rotten)


def _oids(cache: HashFileDB, oid: str) -> Iterator[str]:
    """The object's own hash and, of a folder, those of its files as far as the list of them can be read."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    if oid.endswith(".dir"):
        with contextlib.suppress(FileNotFoundError, ObjectFormatError):
            tree = Tree.load(cache, HashInfo(cache.hash_name, oid)).as_dict()
            yield from (info.value for _, info in tree.values() if info and info.value)
    yield oid


def _is_rotten(cache: HashFileDB, oid: str, memory: State) -> bool:
    """Whether the file of this name is another one. One that is not there is not rotten."""
    from dvc_data.hashfile.hash import hash_file

    path = cache.oid_to_path(oid)
    try:
        _, found = hash_file(path, cache.fs, cache.hash_name, memory)
    except FileNotFoundError:
        return False
    return found.value != oid.removesuffix(".dir")
