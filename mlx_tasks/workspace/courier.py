"""Checkpoints travel too: beside a stage that runs, what it keeps is copied to the store; another worker can go on.

    REMOTE/checkpoints/RUN/TARGET/index.json          {"id", "written", "files": {path: [sha256, bytes]}}, written last
    REMOTE/checkpoints/RUN/TARGET/objects/SHA256      the files' bytes

A copy is what its index names; the index is replaced only when all of it is there, so a courier that dies leaves the
copy before. It never fails a stage: where the store is away, the stage computes on and the copy is made later.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_tasks.errors import InterruptedStageError
from mlx_tasks.files import atomic_folder, atomic_write_text, sha256_file
from mlx_tasks.workspace.paths import Places

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
"""Between looks at the folder; what has not changed costs a look alone."""
INDEX, OBJECTS = "index.json", "objects"


class Courier:
    """One stage's checkpoints and their copy in the store.

    As a context it first brings the copy here if another worker made it, then copies on while the block runs. A block
    that ends without an exception needs its checkpoints no more, and the copy is removed.
    """

    def __init__(self, store: Any, base: str, folder: Path, say: Callable[[str], None] = logger.info) -> None:
        """store: an fsspec filesystem; base: the copy's folder in it; folder: the stage's checkpoints here."""
        self._store, self._base, self._folder, self._say = store, base, folder, say
        self._mark = folder.with_name(f".{folder.name}.copy")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint courier", daemon=True)
        self._copied: dict[str, tuple[int, int]] = {}
        self._away = False

    def __enter__(self) -> Courier:
        with self._tolerant("bring"):
            self._bring()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            with self._tolerant("remove"):
                self._remove()
        else:
            self._copy_once()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._copy_once()

    def _copy_once(self) -> None:
        with self._tolerant("copy"):
            seen = dict(_files(self._folder))
            try:
                self._copy(seen)
            except FileNotFoundError:
                if dict(_files(self._folder)) == seen:
                    raise
                # A newer checkpoint took this one's place meanwhile: the next look copies that.

    def _bring(self) -> None:
        index = self._index()
        if index is None or (self._mark.exists() and self._mark.read_text() == index["id"]):
            return
        with atomic_folder(self._folder) as fresh:
            for name, (digest, _) in index["files"].items():
                path = fresh / name
                if not path.resolve().is_relative_to(fresh.resolve()):
                    raise ValueError(f"the copy names a path outside its folder: {name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                self._store.get_file(f"{self._base}/{OBJECTS}/{digest}", str(path))
                if sha256_file(path) != digest:
                    raise ValueError(f"{name} has other bytes than its hash")
        atomic_write_text(self._mark, index["id"])
        self._say(f"brought the checkpoints of {index['written']}: {len(index['files'])} files")

    def _copy(self, seen: dict[str, tuple[int, int]]) -> None:
        if seen == self._copied or not seen:
            return
        files = {name: [sha256_file(self._folder / name), size] for name, (size, _) in seen.items()}
        before = self._index()
        there = {digest for digest, _ in before["files"].values()} if before else set()
        here = {digest: name for name, (digest, _) in files.items()}
        for digest in here.keys() - there:
            self._store.put_file(str(self._folder / here[digest]), f"{self._base}/{OBJECTS}/{digest}")
        if dict(_files(self._folder)) != seen:
            return  # it changed meanwhile: the next look copies one state, not a mixture
        written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        index = {"id": uuid.uuid4().hex, "written": written, "files": files}
        self._store.pipe_file(f"{self._base}/{INDEX}", json.dumps(index).encode())
        atomic_write_text(self._mark, index["id"])
        self._copied = seen
        for digest in there - here.keys():
            self._store.rm_file(f"{self._base}/{OBJECTS}/{digest}")

    def _remove(self) -> None:
        self._mark.unlink(missing_ok=True)
        self._store.invalidate_cache()
        if self._store.exists(self._base):
            self._store.rm(self._base, recursive=True)

    def _index(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._store.cat_file(f"{self._base}/{INDEX}"))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _tolerant(self, what: str) -> Iterator[None]:
        """Whatever the store or the disk says is told once and tried again later."""
        try:
            yield
            self._away = False
        except InterruptedStageError:  # from the node's own handler of SIGTERM
            raise
        except Exception as error:  # a store raises what it likes; none of it is worth the stage
            if not self._away:
                self._say(f"checkpoints stay on this worker for now: cannot {what} their copy: {error}")
            self._away = True


def courier(places: Places, slug: str, target: str, workspace: Path, say: Callable[[str], None]) -> Any:
    """The courier of one stage; nothing where all tasks run on one machine (no ADO_GIT_REMOTE)."""
    if places.git_remote is None:
        return contextlib.nullcontext()
    from mlx_tasks.workspace.store import open_store

    try:
        store, root = open_store(places)
    except Exception as error:
        say(f"checkpoints stay on this worker: {error}")
        return contextlib.nullcontext()
    name = target.replace("@", "_")
    return Courier(store, f"{root}/checkpoints/{slug}/{name}", workspace / ".checkpoints" / target, say)


def _files(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(path below the folder, (bytes, time of change)) of whole files; half-written ones begin with a dot."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(root) / name
                with contextlib.suppress(FileNotFoundError):
                    told = path.stat()
                    yield str(path.relative_to(folder)), (told.st_size, told.st_mtime_ns)
