"""What is kept of one stage's process: when, how long, how it ended, on what. Light: nodes read it too."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from mlx_tasks.errors import ExitCode
from mlx_tasks.events import emit
from mlx_tasks.files import write_json
from mlx_tasks.hardware import Hardware

NODE_VARIABLE = "MLX_TASKS_NODE"
"""Set by a node to a token of its own, so that it knows the record of the process that it started."""


def record_path(root: Path, target: str) -> Path:
    """Where a stage's record lies in its workspace."""
    return root / ".run" / "stages" / f"{target}.json"


class StageRecord:
    """`.run/stages/TARGET.json`, rewritten as the stage learns more.

    target; started and ended (Unix seconds); seconds; exit_code; message; mlflow_run_id and mlflow_url (or null);
    hardware; peak_memory_mb; node (the token of the node that started it, or null). `ended` and what follows from it
    are null while the stage runs.
    """

    def __init__(self, root: Path, target: str) -> None:
        self._path = record_path(root, target)
        self._values: dict[str, Any] = {
            "target": target,
            "started": time.time(),
            "ended": None,
            "seconds": None,
            "exit_code": None,
            "message": "",
            "mlflow_run_id": None,
            "mlflow_url": None,
            "hardware": None,
            "peak_memory_mb": None,
            "node": os.environ.get(NODE_VARIABLE),
        }

    def begin(self, found: Hardware) -> None:
        """Whatever was waited for is there: the stage's own time starts."""
        self._values |= {"started": time.time(), "hardware": found.as_dict()}
        write_json(self._path, self._values)

    def tracked(self, run_id: str, url: str) -> None:
        """Note the MLflow run and tell whoever listens, so that its link is there while the stage runs."""
        self._values |= {"mlflow_run_id": run_id, "mlflow_url": url}
        write_json(self._path, self._values)
        emit("mlflow_run", run_id=run_id, url=url)

    def end(self, code: ExitCode, message: str) -> None:
        """The stage is over."""
        now = time.time()
        self._values |= {
            "ended": now,
            "seconds": now - self._values["started"],
            "exit_code": int(code),
            "message": message,
            "peak_memory_mb": _peak_memory_mb(),
        }
        write_json(self._path, self._values)


def _peak_memory_mb() -> float:
    """Highest memory MLX held if it was used here, else this process's highest resident set (MiB)."""
    mlx = sys.modules.get("mlx.core")
    peak = mlx.get_peak_memory() if mlx is not None else 0
    if not peak:
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS and KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak / 2**20
