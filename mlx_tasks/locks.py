"""Locks between processes that say who holds them, and that a dead holder frees.

They are `flock`s: the kernel drops one when its last descriptor closes, however its process ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mlx_tasks.errors import BusyError
from mlx_tasks.hardware import Hardware

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "MLX_TASKS_LOCKS"
WAIT_VARIABLE = "MLX_TASKS_LOCK_WAIT"
POLL_S = 0.2
REMIND_S = 60.0


@contextlib.contextmanager
def held(
    path: Path,
    holder: str,
    *,
    what: str,
    wait_s: float | None = None,
    say: Callable[[str], None] = logger.info,
) -> Iterator[None]:
    """Hold `path`'s lock for the block, waiting for whoever has it.

    Args:
        holder: who takes it, for those who wait ("train in /runs/a").
        what: what the lock guards, for the messages ("the accelerator").
        wait_s: longest wait in seconds; None waits without end, 0 does not wait.
        say: called when the wait begins, once a minute of it, and when it is over.

    Raises: BusyError naming the holder, after `wait_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(path, what, wait_s, say)
    try:
        record = {"pid": os.getpid(), "holder": holder, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        _rewrite(file, json.dumps(record))
        yield
    finally:
        with contextlib.suppress(OSError):
            _rewrite(file, "")
        file.close()


def holder_of(path: Path) -> str:
    """Who holds a lock, in words, as far as its file tells."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return f"pid {record['pid']} ({record['holder']}) since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def accelerator(
    hardware: Hardware, holder: str, say: Callable[[str], None] = logger.info, wait_s: float | None = None
) -> contextlib.AbstractContextManager[None]:
    """Hold this machine's accelerator for the block: two trainings never share it, whatever workspace each is in.

    Waits `wait_s` seconds; None: without end, or MLX_TASKS_LOCK_WAIT seconds.  Raises: BusyError.
    """
    name = hardware.kind
    if hardware.kind == "cuda":
        name += "-" + os.environ.get("CUDA_VISIBLE_DEVICES", "0").replace(",", "-").replace("/", "-")
    asked = os.environ.get(WAIT_VARIABLE)
    if wait_s is None and asked:
        wait_s = float(asked)
    return held(
        locks_folder() / f"{name}.lock",
        holder,
        what=f"the accelerator ({hardware.chip})",
        wait_s=wait_s,
        say=say,
    )


def locks_folder() -> Path:
    """Where this user's machine-wide locks lie: MLX_TASKS_LOCKS, or a folder of the user's own in /tmp.

    Not TMPDIR and not XDG_RUNTIME_DIR: a service and a login shell see different ones, and would not meet.
    Raises: BusyError if another user owns the folder, or it is none.
    """
    asked = os.environ.get(FOLDER_VARIABLE)
    if asked:
        return Path(asked)
    folder = Path("/tmp") / f"mlx-tasks-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise BusyError(f"{folder} is not a folder of this user's: remove it, or set {FOLDER_VARIABLE} to another one")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def _acquire(path: Path, what: str, wait_s: float | None, say: Callable[[str], None]) -> IO[str]:
    started = time.monotonic()
    reminded = None
    while True:
        file = path.open("a+", encoding="utf-8")
        if _try_lock(file):
            if _is_at(file, path):
                if reminded is not None:
                    say(f"got {what} after {time.monotonic() - started:.0f} s")
                return file
            file.close()  # the file was removed meanwhile: whoever made the new one must be met there
            continue
        file.close()
        waited = time.monotonic() - started
        if wait_s is not None and waited >= wait_s:
            raise BusyError(f"{what} is held by {holder_of(path)}; waited {waited:.0f} s: wait for it, or end it")
        if reminded is None or waited - reminded >= REMIND_S:
            reminded = waited
            say(f"waiting for {what}: held by {holder_of(path)}")
        time.sleep(POLL_S)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _rewrite(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
