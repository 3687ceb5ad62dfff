"""Files that are whole or absent: write under a temporary name, flush to the disk, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any


def flush_to_disk(descriptor: int) -> None:
    """Force a file's bytes to the disk; on macOS `fsync` stops at the drive's cache and F_FULLFSYNC does not."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def atomic_write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` with `data`; a crash or a full disk leaves the old file. Raises: OSError.

    mode: who may read it; until it is whole, its owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            flush_to_disk(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def atomic_write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace `path` with UTF-8 text, as `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"), mode)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with indented JSON; NaN and infinity are refused (ValueError), since other readers refuse them."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value of `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `path` when the block ends, and vanishes if it raises.

    The old folder is moved aside before the rename and removed after it, so a reader sees one or the other, whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    fresh.mkdir()  # not by tempfile: who may enter is the umask's word, as for every other folder
    try:
        yield fresh
        old = fresh.with_name(fresh.name + ".old")
        if path.exists():
            os.replace(path, old)
        os.replace(fresh, path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open for reading.  A pipe would wait for its writer for ever, and a device may have no end.

    Raises: OSError, whose `strerror` says what the path is instead.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
