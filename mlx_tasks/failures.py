"""What an exception means to whoever retries: its exit code and a message for people."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from mlx_tasks.errors import ExitCode, StageError

_OUT_OF_MEMORY = re.compile(
    r"unable to allocate|failed to allocate|out[ _]?of[ _]?memory|insufficient memory|bad_alloc"
    r"|greater than the maximum allowed buffer size|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)


def classify(error: BaseException, root: Path) -> tuple[ExitCode, str]:
    """(exit code, message) of an exception that ended a stage in workspace `root`."""
    if isinstance(error, StageError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted; it goes on from its checkpoint when run again"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return (
            ExitCode.OUT_OF_MEMORY,
            f"out of memory ({error}): take less at once (MLX_TASKS_MICRO_BATCH)",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExitCode.UNAVAILABLE, _full_disk(error, root)
    return ExitCode.UNKNOWN, f"{type(error).__name__}: {error}"


def _full_disk(error: OSError, root: Path) -> str:
    where = error.filename or root
    try:
        free = f"{shutil.disk_usage(root).free / 2**20:.0f} MiB"
    except OSError:
        free = "an unknown amount"
    return f"the disk is full: writing {where} failed with {free} free at {root}; free some, then run the stage again"
