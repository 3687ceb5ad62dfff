"""Ship a journal to MLflow: in batches, in order, again after every failure that can pass, and never twice.

What is shipped is remembered as a byte offset after each batch. A crash between a batch and its offset sends the batch
again, and that is harmless: metrics carry the time at which they were written, MLflow drops one it has (same run, name,
time, step and value), params and tags are sets, and files go to names that derive from the journal's line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from mlx_tasks.errors import BusyError, UnavailableError
from mlx_tasks.tracking.journal import Journal, journals
from mlx_tasks.tracking.rest import EXPERIMENT_VARIABLE, MlflowRefused, MlflowRest, is_proxied

logger = logging.getLogger(__name__)

METRICS_A_BATCH = 1000
VALUES_A_BATCH = 100
TOKEN_TAG = "mlx_tasks.record"


def ensure_run(rest: MlflowRest, journal: Journal) -> str:
    """The journal's MLflow run, made if it is not there (yet, or any more: then all is shipped from the start)."""
    state = journal.state()
    experiment_id = rest.experiment(state["experiment"])
    run_id = state.get("run_id")
    if run_id and not rest.run_is_active(run_id):
        logger.warning("mlflow_run=%s gone=true action='new run, all records shipped again'", run_id)
        run_id = None
        journal.set_state(offset=0, run_id=None, kept=[])
    elif not run_id:  # the process may have died between making the run and writing its id down
        run_id = rest.find_run(experiment_id, TOKEN_TAG, state["token"])
    if not run_id:
        tags = {**state["tags"], TOKEN_TAG: state["token"]}
        run_id = rest.create_run(experiment_id, state["run_name"], tags, state["start_ms"])
    info = rest.run(run_id)["info"]
    journal.set_state(run_id=run_id, experiment_id=experiment_id, artifact_uri=info["artifact_uri"], uri=rest.uri)
    return run_id


def ship_once(rest: MlflowRest, journal: Journal) -> int:
    """Ship what the journal holds now; the lines shipped.  Raises: UnavailableError, the rest kept for later."""
    state = journal.state()
    shipped = 0
    while True:
        entries, ends = journal.read(int(state.get("offset", 0)))
        if not ends:
            return shipped
        start = 0
        while start < len(entries):
            stop = _batch_end(entries, start)
            begin, end = int(state.get("offset", 0)), ends[stop - 1]
            changes: dict[str, Any] = {"offset": end}
            if _ship(rest, journal, state, entries[start:stop]):
                shipped += stop - start
            else:
                changes["kept"] = state["kept"] = [*(state.get("kept") or []), [begin, end]]
            state["offset"] = end
            journal.set_state(**changes)
            start = stop


def ship_kept(rest: MlflowRest, journal: Journal) -> int:
    """Ship the lines whose files no place took before; how many are at the server now."""
    shipped, state = 0, journal.state()
    for start, end in journal.kept():
        entries, ends = journal.read(start, limit=1)
        if ends and ends[0] == end and not _ship(rest, journal, state, entries[:1]):
            continue
        shipped += 1
        journal.set_state(kept=[list(pair) for pair in journal.kept() if pair != (start, end)])
    return shipped


def _batch_end(entries: list[dict[str, Any]], start: int) -> int:
    """Where the run of metrics lines from `start` ends, at most METRICS_A_BATCH values; other kinds go one by one."""
    count, stop = 0, start
    while stop < len(entries) and entries[stop]["kind"] == "metrics":
        count += len(entries[stop]["values"])
        if count > METRICS_A_BATCH and stop > start:
            break
        stop += 1
    return max(stop, start + 1)


def _ship(rest: MlflowRest, journal: Journal, state: dict[str, Any], entries: list[dict[str, Any]]) -> bool:
    """Send lines of one kind; False where they are an image or a file that no place takes now, and must wait.

    What a server refuses costs itself. An experiment's root outside the server, or a store behind it that is broken,
    holds back no metric.
    """
    first = entries[0]
    run_id = state["run_id"]
    if first["kind"] in ("image", "artifact") and not is_proxied(state["artifact_uri"]):
        return False  # told when the tracker was opened
    try:
        match first["kind"]:
            case "metrics":
                rows = [(k, v, e["time"], e["step"]) for e in entries for k, v in e["values"].items()]
                for start in range(0, len(rows), METRICS_A_BATCH):
                    rest.log_batch(run_id, metrics=rows[start : start + METRICS_A_BATCH])
            case "params" | "tags" as kind:
                _ship_values(rest, run_id, kind, first["values"])
            case "image":
                _ship_image(rest, journal, state, first)
            case "artifact":
                _ship_artifact(rest, journal, state, first)
            case "status":
                ended = first["status"] != "RUNNING"
                rest.update_run(run_id, first["status"], first["time"] if ended else None)
    except FileNotFoundError as error:
        logger.warning("record=%s skipped=true reason='its copy is gone: %s'", first["kind"], error.filename)
    except MlflowRefused as error:
        logger.warning("record=%s skipped=true reason='%s'", first["kind"], error)
    except UnavailableError as error:
        if first["kind"] not in ("image", "artifact") or not rest.healthy():
            raise
        logger.warning("record=%s kept=true reason='the server takes no files: %s'", first["kind"], error)
        return False
    return True


def _ship_values(rest: MlflowRest, run_id: str, kind: str, values: dict[str, str]) -> None:
    """Params and tags by the hundred; where the server refuses a hundred, one by one, so that one costs only itself."""
    items = list(values.items())

    def send(part: dict[str, str]) -> None:
        rest.log_batch(run_id, params=part if kind == "params" else None, tags=part if kind == "tags" else None)

    for start in range(0, len(items), VALUES_A_BATCH):
        part = items[start : start + VALUES_A_BATCH]
        try:
            send(dict(part))
        except MlflowRefused:
            for key, value in part:
                try:
                    send({key: value})
                except MlflowRefused as error:
                    logger.warning("record=%s key=%s skipped=true reason='%s'", kind, key, error)


def _ship_image(rest: MlflowRest, journal: Journal, state: dict[str, Any], entry: dict[str, Any]) -> None:
    """Store an image under the names by which MLflow's UI finds a run's images, step by step.

    images/KEY+step+N+timestamp+MS+UUID.png and the same +compressed.webp, and the tag mlflow.loggedImages.
    """
    from PIL import Image

    path = journal.files / entry["file"]
    key = entry["name"].replace("/", "~")
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{state['token']}/{entry['file']}")
    name = f"images/{key}+step+{entry['step']}+timestamp+{entry['time']}+{identity}"
    small = path.with_suffix(".webp")
    with Image.open(path) as image:
        image.thumbnail((256, 256))
        image.save(small, lossless=True)
    rest.put_artifact(state["artifact_uri"], f"{name}.png", path)
    rest.put_artifact(state["artifact_uri"], f"{name}+compressed.webp", small)
    small.unlink()
    rest.log_batch(state["run_id"], tags={"mlflow.loggedImages": "True"})


def _ship_artifact(rest: MlflowRest, journal: Journal, state: dict[str, Any], entry: dict[str, Any]) -> None:
    """Store a file or every file of a folder, then drop the copy."""
    import shutil

    copy = journal.files / entry["file"]
    if not copy.exists():
        raise FileNotFoundError(2, "no copy", str(copy))
    prefix = f"{entry['folder']}/" if entry["folder"] else ""
    for path in [copy] if copy.is_file() else sorted(p for p in copy.rglob("*") if p.is_file()):
        rest.put_artifact(state["artifact_uri"], prefix + path.relative_to(copy.parent).as_posix(), path)
    shutil.rmtree(copy.parent, ignore_errors=True)


class Shipper(threading.Thread):
    """Ships one journal in the background until told to stop, then what is left, within its patience.

    Attributes:
        pending: whether anything was left behind when it ended.
    """

    def __init__(self, rest: MlflowRest, journal: Journal, every_s: float = 1.0) -> None:
        super().__init__(name="mlflow-shipper", daemon=True)
        self.pending = True
        self._rest = rest
        self._journal = journal
        self._every_s = every_s
        self._stopping = threading.Event()
        self._deadline = float("inf")

    def stop(self, patience_s: float) -> bool:
        """Ship what is left, for at most `patience_s` seconds; whether all is shipped."""
        self._deadline = time.monotonic() + patience_s
        self._stopping.set()
        self.join(patience_s + 1.0)
        return not self.pending

    def run(self) -> None:
        """Ship, wait, repeat; while the server is away, wait longer and longer (0.5 to 5 s)."""
        away_since: float | None = None
        backoff_s = 0.5
        while True:
            stopping = self._stopping.is_set()
            try:
                ship_once(self._rest, self._journal)
            except UnavailableError as error:
                if away_since is None:
                    away_since = time.monotonic()
                    logger.warning("mlflow=away reason='%s' records='kept on disk'", error)
                if time.monotonic() >= self._deadline:
                    return
                self._stopping.wait(backoff_s) if not stopping else time.sleep(min(backoff_s, 0.5))
                backoff_s = min(backoff_s * 2, 5.0)
                continue
            except Exception as error:
                # A thread's outermost frame: whatever it is, the stage goes on and `ship-records` tries again.
                logger.warning("mlflow=stopped reason='%s: %s'", type(error).__name__, error)
                return
            if away_since is not None:
                logger.info("mlflow=back away_s=%.0f", time.monotonic() - away_since)
                away_since, backoff_s = None, 0.5
            if stopping:
                self.pending = False
                return
            self._stopping.wait(self._every_s)


def ship_records(root: Path, uri: str, except_for: str | None = None) -> dict[str, int]:
    """Ship every journal of a workspace that is not at the server yet; name -> lines shipped, busy ones left out.

    Raises: UnavailableError; what is shipped by then stays shipped.
    """
    shipped: dict[str, int] = {}
    rest = MlflowRest(uri)
    with contextlib.closing(rest):
        for journal in journals(root / ".run" / "records"):
            if journal.name == except_for or not journal.pending_bytes():
                continue
            try:
                with journal.exclusive():
                    _move_to_other_experiment(journal)
                    ensure_run(rest, journal)
                    shipped[journal.name] = ship_kept(rest, journal) + ship_once(rest, journal)
            except BusyError:
                logger.info("records=%s skipped=true reason='a stage is writing them'", journal.name)
    return shipped


def _move_to_other_experiment(journal: Journal) -> None:
    """Record a journal with waiting files again from its start, where the experiment set now is another one.

    A run cannot be moved, nor its root changed: it stays as it is, and a whole one stands in the new experiment.
    """
    asked, state = os.environ.get(EXPERIMENT_VARIABLE), journal.state()
    if not journal.kept() or not asked or asked == state["experiment"]:
        return
    tags = {key: value for key, value in state["tags"].items() if key != "mlflow.parentRunId"}
    journal.set_state(experiment=asked, tags=tags, token=uuid.uuid4().hex, run_id=None, offset=0, kept=[])
