"""One stage as one process: log, lock, watch, run, and end with the code that says what kind of end it was."""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from mlx_tasks import hardware, locks
from mlx_tasks.catalog import Stage, dvc_target
from mlx_tasks.errors import ExitCode, GateRefused, InterruptedStageError
from mlx_tasks.failures import classify
from mlx_tasks.params import load_config
from mlx_tasks.progress import Progress
from mlx_tasks.stages.context import StageContext
from mlx_tasks.stages.record import StageRecord
from mlx_tasks.supervision import ParentWatch
from mlx_tasks.time_limits import within
from mlx_tasks.tracking.mlflow_tracker import MlflowTracker, open_tracker
from mlx_tasks.tracking.rest import run_url

logger = logging.getLogger(__name__)


def run_stage(stage: Stage, root: Path, arguments: dict[str, int]) -> int:
    """Run one stage in workspace `root`; its exit code (mlx_tasks/errors.py). Never raises but for SystemExit's like.

    Writes `.run/stages/TARGET.json` (stages/record.py).
    """
    root = root.resolve()
    target = dvc_target(stage.name, **arguments)
    _log_to_stdout()
    record = StageRecord(root, target)

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


def _run(stage: Stage, root: Path, target: str, arguments: dict[str, int], record: StageRecord) -> str:
    config = load_config(root)
    progress = Progress(target, root / ".run" / "progress")
    with contextlib.ExitStack() as stack:
        if stage.accelerator:
            stack.enter_context(locks.accelerator(hardware.detect(), f"{target} in {root}", say=progress.say))
        record.begin(hardware.prepare())
        tracker = stack.enter_context(open_tracker(root, target, config))
        if isinstance(tracker, MlflowTracker) and tracker.run_id is not None:
            record.tracked(tracker.run_id, run_url(tracker.uri, tracker.experiment_id, tracker.run_id))
        context = StageContext(target, config.for_stage(stage.name), root, hardware.detect(), tracker, progress)
        stack.enter_context(within(stage.name, record.end))
        try:
            importlib.import_module(stage.module).run(context, **arguments)
        except GateRefused as refusal:
            progress.say(f"the gate refused: {refusal}")
            return f"the gate refused: {refusal}"
    return ""


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
