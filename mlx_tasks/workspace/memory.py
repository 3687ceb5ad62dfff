"""After an out-of-memory end the next try takes half the micro-batch: kept in the workspace, so per machine.

Three ends count: the stage said so; the kernel's out-of-memory killer struck while it ran; it died of SIGSEGV, which is
how MLX's CPU build answers an allocation that the system refuses (0.32.4, Linux).
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from mlx_tasks.errors import ExitCode
from mlx_tasks.files import read_json, write_json
from mlx_tasks.hardware import detect
from mlx_tasks.params import load_config

MICRO_BATCH_VARIABLE = "MLX_TASKS_MICRO_BATCH"
_BRANCHES = {"search_trial": "search", "search_select": "search"}


def current_micro_batch(workspace: Path, target: str) -> int | None:
    """The largest micro-batch that this target may take here (images), or None while nothing has limited it."""
    try:
        return int(read_json(_path(workspace, target))["micro_batch"])
    except (OSError, ValueError, KeyError):
        asked = os.environ.get(MICRO_BATCH_VARIABLE)
        return int(asked) if asked else None


def halve_micro_batch(workspace: Path, stage: str, target: str) -> int | None:
    """Half of what the target took until now, written down for its next try; None where that was one image."""
    branch = getattr(load_config(workspace), _BRANCHES.get(stage, stage), None)
    batch_size = getattr(branch, "batch_size", None) or detect().max_micro_batch
    before = min(current_micro_batch(workspace, target) or detect().max_micro_batch, batch_size)
    if before <= 1:
        return None
    write_json(_path(workspace, target), {"micro_batch": before // 2})
    return before // 2


def memory_ran_out(code: int, kills_before: int) -> bool:
    """Whether an exit code (128 + N for signal N) means too little memory.  kills_before: `oom_kills` at the start."""
    if code == 128 + signal.SIGKILL:
        return oom_kills() > kills_before
    return code in (ExitCode.OUT_OF_MEMORY, 128 + signal.SIGSEGV)


def oom_kills() -> int:
    """How often Linux's out-of-memory killer has struck since boot; 0 where nothing tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _path(workspace: Path, target: str) -> Path:
    return workspace / ".run" / "memory" / f"{target}.json"
