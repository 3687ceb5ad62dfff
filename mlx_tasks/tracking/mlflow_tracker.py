"""Record what a stage does: on disk at once, at MLflow soon after.

Every record is a line of a journal under `.run/records/` first (journal.py); a background thread ships the lines to
MLflow (shipper.py). So no call of a stage waits for a server, and a server that is away loses nothing:

- away when the stage starts: `UnavailableError` within ten seconds, before any work;
- away for a while in the middle: the lines wait on disk and go out when it is back;
- still away at the end: we wait (MLX_TASKS_MLFLOW_PATIENCE_S, 60 s), then leave the lines on disk with a warning. The
  stage's result stands: its exit code is that of its work. The next stage of the workspace, or `mlx-tasks
  ship-records`, ships them.

A stage that was killed and runs again goes on in the same MLflow run, as long as params, commit, experiment and server
are the same and the run did not finish. It resumes from a checkpoint some steps back, so it tells some steps a second
time: of a (name, step) that an earlier attempt has recorded, the first record stands and the second is dropped.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError, InterruptedStageError, StageError
from mlx_tasks.files import atomic_write_bytes
from mlx_tasks.hardware import detect
from mlx_tasks.tracking.journal import Journal
from mlx_tasks.tracking.rest import (
    DEFAULT_EXPERIMENT,
    EXPERIMENT_VARIABLE,
    MlflowRest,
    json_number,
    now_ms,
    tracking_uri,
)
from mlx_tasks.tracking.shipper import Shipper, ensure_run, ship_records

logger = logging.getLogger(__name__)

START_PATIENCE_S = 10.0
END_PATIENCE_VARIABLE = "MLX_TASKS_MLFLOW_PATIENCE_S"
KILLED_PATIENCE_S = 2.0
"""Airflow gives a task five seconds between SIGTERM and SIGKILL."""

_NAME = re.compile(r"^[A-Za-z0-9_\-./: ]{1,250}$")


class LocalTracker:
    """A tracker whose records stay in the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._told: set[tuple[str, str, int]] = set()
        for entry in journal.entries():
            if entry["kind"] == "metrics":
                self._told.update(("metrics", name, entry["step"]) for name in entry["values"])
            elif entry["kind"] == "image":
                self._told.add(("image", entry["name"], entry["step"]))
        self._files = 0

    @property
    def run_id(self) -> str | None:
        """None: there is no MLflow run."""
        return None

    def params(self, values: dict[str, Any]) -> None:
        """Record parameters once; nested ones under dotted names."""
        self._journal.append({"kind": "params", "values": flatten(values)})

    def tags(self, values: dict[str, str]) -> None:
        """Record tags; a later value replaces an earlier one."""
        self._journal.append({"kind": "tags", "values": {key: str(value) for key, value in values.items()}})

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record `group/name` -> value at a step.  A value that is not finite is recorded as such."""
        fresh = {
            _checked(name): json_number(float(value))
            for name, value in values.items()
            if ("metrics", name, int(step)) not in self._told
        }
        if fresh:
            self._journal.append({"kind": "metrics", "time": now_ms(), "step": int(step), "values": fresh})

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Record an image.  pixels: (H, W) or (H, W, 1, 3 or 4) uint8."""
        from PIL import Image

        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise ValueError(f"pixels must be (H, W) or (H, W, C) uint8, got {pixels.shape} {pixels.dtype}")
        if ("image", _checked(name), int(step)) in self._told:
            return
        grey = pixels.ndim == 3 and pixels.shape[2] == 1
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, format="PNG")
        file = f"images/{name.replace('/', '~')}+{int(step)}+{uuid.uuid4().hex[:8]}.png"
        with self._forgiving("image", name):
            atomic_write_bytes(self._journal.files / file, buffer.getvalue())
            self._journal.append({"kind": "image", "time": now_ms(), "step": int(step), "name": name, "file": file})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or a folder as it is now.  Raises: DataError where there is none."""
        if not path.exists():
            raise DataError(f"no file or folder to record at {path}")
        file = f"artifacts/{uuid.uuid4().hex[:12]}/{path.name}"
        with self._forgiving("artifact", path.name):
            copy = self._journal.files / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
            self._journal.append({"kind": "artifact", "file": file, "folder": folder.strip("/")})

    @contextlib.contextmanager
    def _forgiving(self, kind: str, name: str) -> Iterator[None]:
        """A disk that takes no copy costs the record, not the stage."""
        try:
            yield
        except OSError as error:
            self._journal.lost += 1
            logger.warning("record=%s name=%s lost=true reason='%s'", kind, name, error)


class MlflowTracker(LocalTracker):
    """A tracker whose journal is shipped to MLflow."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self._state = journal.state()

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id."""
        return self._state["run_id"]

    @property
    def experiment_id(self) -> str:
        """The MLflow experiment's id."""
        return self._state["experiment_id"]

    @property
    def uri(self) -> str:
        """The server's address."""
        return self._state["uri"]


@contextlib.contextmanager
def open_tracker(root: Path, target: str, config: Config) -> Iterator[LocalTracker]:
    """A tracker for one stage: an `MlflowTracker` where MLFLOW_TRACKING_URI is set, a `LocalTracker` elsewhere.

    Raises: UnavailableError before any work where the server does not answer in START_PATIENCE_S; BusyError while
    another process records the same target; DataError for an address that is none.
    """
    uri = tracking_uri()
    journal = Journal(root / ".run" / "records", target)
    with journal.exclusive(), contextlib.ExitStack() as stack:
        rest = stack.enter_context(contextlib.closing(MlflowRest(uri))) if uri else None
        if rest:
            rest.wait_until_healthy(START_PATIENCE_S)
        _begin(journal, root, config, uri)
        if rest:
            ensure_run(rest, journal)
            if note := rest.artifact_note(journal.state()["experiment"]):
                logger.warning("mlflow=metrics-only reason='%s'", note)
        tracker = MlflowTracker(journal) if rest else LocalTracker(journal)
        journal.append({"kind": "status", "status": "RUNNING", "time": now_ms()})
        tracker.params(config.dump())
        shipper = Shipper(rest, journal) if rest else None
        if shipper:
            shipper.start()
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except (InterruptedStageError, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            journal.append({"kind": "status", "status": status, "time": now_ms()})
            if shipper:
                _finish(shipper, journal, root, KILLED_PATIENCE_S if status == "KILLED" else _end_patience_s())


def _begin(journal: Journal, root: Path, config: Config, uri: str | None) -> None:
    """Take up the journal of an attempt that did not finish, or start a new one."""
    experiment = os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT
    commit = os.environ.get("MLX_TASKS_RUN_COMMIT") or _head(root)
    identity = {
        "uri": uri.rstrip("/") if uri else None,
        "experiment": experiment,
        "digest": config.digest,
        "commit": commit,
        "run": os.environ.get("MLX_TASKS_RUN_ID", ""),
        "parent": os.environ.get("MLX_TASKS_MLFLOW_PARENT", ""),
    }
    journal.repair()
    old = journal.state()
    if old:
        if old.get("identity") == identity and journal.last_status() != "FINISHED":
            return
        journal.move_aside()
    tags = {
        "mlflow.runName": journal.name,
        "mlflow.source.name": f"mlx-tasks {journal.name}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown",
        "mlx_tasks.target": journal.name,
        "mlx_tasks.params_digest": config.digest,
        "mlx_tasks.device": detect().chip,
    }
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "mlx_tasks.commit": commit}
    if identity["run"]:
        tags["mlx_tasks.run"] = identity["run"]
    if identity["parent"]:
        tags["mlflow.parentRunId"] = identity["parent"]
    journal.remove()
    journal.set_state(
        identity=identity,
        uri=identity["uri"],
        experiment=experiment,
        run_name=journal.name,
        run_id=None,
        token=uuid.uuid4().hex,
        tags=tags,
        start_ms=now_ms(),
        offset=0,
    )


def _finish(shipper: Shipper, journal: Journal, root: Path, patience_s: float) -> None:
    """Ship what is left of this journal and of earlier ones; never raises."""
    started = time.monotonic()
    if not shipper.stop(patience_s):
        logger.warning(
            "records=%s unshipped_bytes=%d fix='they are on disk: `mlx-tasks ship-records` once MLflow is back'",
            journal.lines_path,
            journal.pending_bytes(),
        )
        return
    if kept := journal.kept():
        logger.warning(
            "records=%s images_and_files_on_disk=%d fix='`mlx-tasks ship-records` once the server takes files'",
            journal.lines_path,
            len(kept),
        )
    if time.monotonic() - started < patience_s:
        with contextlib.suppress(StageError, OSError, LookupError):
            uri = journal.state()["uri"]
            for name, lines in ship_records(root, uri, except_for=journal.name).items():
                logger.info("records=%s lines=%d shipped=late", name, lines)


def _end_patience_s() -> float:
    text = os.environ.get(END_PATIENCE_VARIABLE, "60")
    try:
        return max(0.0, float(text))
    except ValueError:
        raise DataError(f"{END_PATIENCE_VARIABLE} must be a number of seconds, got {text!r}") from None


def _head(root: Path) -> str:
    """The commit checked out at `root`, or an empty text outside a repository."""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _checked(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError(f"a record's name holds letters, digits and _-./: and spaces, at most 250, got {name!r}")
    return name


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as dotted names and text: {"train": {"steps": 8}} -> {"train.steps": "8"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
