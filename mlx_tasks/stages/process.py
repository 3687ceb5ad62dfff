"""One stage as one process: log, lock, watch, run, and end with the code that says what kind of end it was."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from mlx_tasks import hardware, locks
from mlx_tasks.catalog import Stage, dvc_target
from mlx_tasks.config import load_config
from mlx_tasks.errors import ExitCode, GateRefused, InterruptedStageError
from mlx_tasks.events import emit
from mlx_tasks.failures import classify
from mlx_tasks.files import write_json
from mlx_tasks.progress import Progress
from mlx_tasks.stages.context import StageContext
from mlx_tasks.supervision import ParentWatch
from mlx_tasks.tracking.mlflow_tracker import LocalTracker, MlflowTracker, open_tracker
from mlx_tasks.tracking.rest import run_url

logger = logging.getLogger(__name__)

NODE_VARIABLE = "MLX_TASKS_NODE"
"""Set by a node to a token of its own, so that it knows the record of the process that it started."""


def record_path(root: Path, target: str) -> Path:
    """Where a stage's record lies in its workspace."""
    return root / ".run" / "stages" / f"{target}.json"


def run_stage(stage: Stage, root: Path, arguments: dict[str, int]) -> int:
    """Run one stage in workspace `root`; its exit code (mlx_tasks/errors.py). Never raises but for SystemExit's like.

    Writes `.run/stages/TARGET.json`: target, started and ended (Unix seconds), seconds, exit_code, message,
    mlflow_run_id, mlflow_url, hardware, peak_memory_mb, node; `ended` and what follows from it are null while it runs.
    """
    root = root.resolve()
    target = dvc_target(stage.name, **arguments)
    _log_to_stdout()
    record = _Record(root, target)

    def orphaned(reason: str) -> None:
        record.end(ExitCode.INTERRUPTED, f"stopped: {reason}; it goes on from its checkpoint when run again")

    code, message = ExitCode.OK, ""
    try:
        with ParentWatch(orphaned), _terminable():
            message = _run(stage, root, target, arguments, record)
    except BaseException as error:
        code, message = classify(error, root)
        if code is ExitCode.UNKNOWN:
            traceback.print_exc()
        logger.error("stage=%s exit=%s %s", target, code.name, message)
    with contextlib.suppress(OSError):  # a full disk must not hide the kind of end
        record.end(code, message)
    return int(code)


def _run(stage: Stage, root: Path, target: str, arguments: dict[str, int], record: _Record) -> str:
    config = load_config(root)
    with contextlib.ExitStack() as stack:
        if stage.accelerator:
            stack.enter_context(locks.accelerator(hardware.detect(), f"{target} in {root}"))
        record.begin(hardware.prepare())
        tracker = stack.enter_context(open_tracker(root, target, config))
        record.tracked(tracker)
        progress = Progress(target, root / ".run" / "progress")
        context = StageContext(target, config, root, hardware.detect(), tracker, progress)
        try:
            importlib.import_module(stage.module).run(context, **arguments)
        except GateRefused as refusal:
            progress.say(f"the gate refused: {refusal}")
            return f"the gate refused: {refusal}"
    return ""


class _Record:
    """The stage's record, rewritten as it learns more."""

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

    def begin(self, found: hardware.Hardware) -> None:
        """Whatever was waited for is there: the stage's own time starts."""
        self._values |= {"started": time.time(), "hardware": found.as_dict()}
        write_json(self._path, self._values)

    def tracked(self, tracker: LocalTracker) -> None:
        """Note the MLflow run and tell whoever listens, so that its link is there while the stage runs."""
        if isinstance(tracker, MlflowTracker) and tracker.run_id is not None:
            url = run_url(tracker.uri, tracker.experiment_id, tracker.run_id)
            self._values |= {"mlflow_run_id": tracker.run_id, "mlflow_url": url}
            emit("mlflow_run", run_id=tracker.run_id, url=url)
        write_json(self._path, self._values)

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


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises InterruptedStageError in the main thread, once: a second one must not cut the clean-up short."""

    def terminate(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise InterruptedStageError("told to stop (SIGTERM); it goes on from its checkpoint when run again")

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _log_to_stdout() -> None:
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    for noisy in ("httpx", "httpcore", "urllib3", "matplotlib", "PIL", "great_expectations", "alembic", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
