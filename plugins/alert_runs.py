"""Runs that alerts started, in Airflow's own database: while one waits, all alerts that come join it.

Airflow is imported inside the functions alone, MLX and MLflow nowhere: this lives in Airflow's API server.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

DAG_ID = "optimize_diffusion"
RUN_PREFIX = "alert__"
COOLDOWN_VARIABLE = "ADO_ALERT_COOLDOWN_S"
COOLDOWN_S = 6 * 3600.0
"""In which an alert of one fingerprint starts no second run, although it was resolved and fired again."""
MOST_COOLDOWN_S = 365 * 86_400.0
MAX_WAITING = 2
"""Runs of alerts that may wait; more than one does only where the one that waits cannot be joined."""
SHOWN = 50
"""Alerts that a run's form shows one by one; of more, ids and fingerprints are kept, and their furthest suggestion."""
MAX_KEPT = 20_000
"""Alerts that one run stands for."""
ORDER = ("tune", "distill", "train", "validate")


class Waiting(Exception):
    """No run can take the alerts now."""


@dataclass(frozen=True)
class Outside:
    """One alert as a run's form holds it; what `mlx_tasks.monitoring.alerts` calls an alert, from elsewhere.

    Attributes:
        fingerprint: equal for the same alert.
        began: when it began to fire, as the sender writes it.
        suggestion: where the chain should begin again.
    """

    metric: str
    value: float | None
    limit: float | None
    message: str
    suggestion: str
    fingerprint: str
    began: str
    window: str = ""

    @property
    def id(self) -> str:
        """Of this firing of it."""
        return hashlib.sha256(f"{self.fingerprint} {self.began}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Known:
    """What runs of alerts stand for.

    Attributes:
        ids: alert id -> run.
        cooling: fingerprint -> run, of those within the cooldown.
        waiting: key and form of each run of alerts that has not begun, oldest first.
    """

    ids: dict[str, str]
    cooling: dict[str, str]
    waiting: list[tuple[int, str, Any]]


def start_run(alerts: list[Outside]) -> dict[str, Any]:
    """A run of the chain for the alerts that have none yet; what became of them.

    Requests take turns, so that overlapping groups find each other's run. Raises: Waiting.
    """
    from airflow.exceptions import DagRunAlreadyExists
    from airflow.utils.session import create_session
    from sqlalchemy.exc import IntegrityError

    fresh = list({one.id: one for one in alerts}.values())
    with _turn(), create_session() as session:
        _lock_rows(session)
        known = known_runs(session)
        new = [one for one in fresh if one.id not in known.ids and one.fingerprint not in known.cooling]
        if not new:
            runs = sorted({known.ids.get(one.id) or known.cooling[one.fingerprint] for one in fresh})
            return _told(runs[-1], len(alerts), "these have their run already")
        for key, run_id, form in known.waiting:
            if _join(session, key, form, new):
                return _told(run_id, len(new), "they joined a run that waits")
        if len(known.waiting) >= MAX_WAITING:
            raise Waiting(f"{len(known.waiting)} runs of alerts wait already, and at most {MAX_WAITING} may")
        run_id = RUN_PREFIX + hashlib.sha256(json.dumps(sorted(one.id for one in new)).encode()).hexdigest()[:16]
        try:
            _trigger(session, run_id, packed([], new))
        except (DagRunAlreadyExists, IntegrityError):
            session.rollback()
            return _told(run_id, len(new), "these have their run already")
    return _told(run_id, len(new), "a run was made")


def packed(entries: list[dict[str, Any]], new: list[Outside]) -> list[dict[str, Any]]:
    """A form's alerts with new ones: the first SHOWN one by one, the others as one entry that stands for them all.

    Raises: Waiting where a run would stand for more than MAX_KEPT.
    """
    shown = [one for one in entries if "covers" not in one]
    covered = [pair for one in entries for pair in one.get("covers") or []]
    suggestions = [one["suggestion"] for one in entries if "covers" in one]
    room = max(0, SHOWN - len(shown))
    shown += [asdict(one) | {"id": one.id, "status": "new"} for one in new[:room]]
    covered += [[one.id, one.fingerprint] for one in new[room:]]
    if len(shown) + len(covered) > MAX_KEPT:
        raise Waiting(f"the run that waits stands for {MAX_KEPT} alerts already")
    if not covered:
        return shown
    furthest = max((*suggestions, *(one.suggestion for one in new[room:])), key=ORDER.index)
    return [
        *shown,
        {
            "metric": f"{len(covered)} more alerts",
            "value": None,
            "limit": None,
            "message": "too many to be named one by one",
            "suggestion": furthest,
            "status": "new",
            "covers": covered,
        },
    ]


def note_of(entries: list[dict[str, Any]]) -> str:
    """What stands on the run: metric, value, limit and window of each alert."""
    lines = []
    for one in entries:
        value = "" if one["value"] is None else f" {one['value']:.4g}"
        limit = "" if one["limit"] is None else f" (limit {one['limit']:.4g})"
        window = f", window {one['window']}" if one.get("window") else ""
        lines.append(f"{one['metric']}{value}{limit}{window}: {one['message']}")
    return ("Started by alerts:\n" + "\n".join(lines))[:1000]


def known_runs(session: Any) -> Known:
    """All runs of alerts. What others wrote into such a run's form is passed over where it is no alert."""
    from airflow.models import DagRun
    from airflow.utils.state import DagRunState
    from sqlalchemy import select

    since = datetime.now(UTC) - timedelta(seconds=_cooldown_s())
    ids: dict[str, str] = {}
    cooling: dict[str, str] = {}
    waiting: list[tuple[int, str, Any]] = []
    columns = (DagRun.id, DagRun.run_id, DagRun.conf, DagRun.queued_at, DagRun.state)
    made = select(*columns).where(DagRun.dag_id == DAG_ID, DagRun.run_id.like("alert\\_\\_%", escape="\\"))
    for key, run_id, form, queued_at, state in session.execute(made.order_by(DagRun.id.desc())):
        entries = alerts_of(form)
        for identity, fingerprint in (pair for one in entries for pair in _pairs(one)):
            ids.setdefault(identity, run_id)
            if queued_at is None or queued_at >= since:
                cooling.setdefault(fingerprint, run_id)
        if state == DagRunState.QUEUED:
            waiting.insert(0, (key, run_id, form))
    return Known(ids, cooling, waiting)


def alerts_of(form: Any) -> list[dict[str, Any]]:
    """The entries of a run's form that are alerts, whoever wrote it."""
    entries = form.get("alerts") if isinstance(form, dict) else None
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


def _pairs(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(id, fingerprint) of all that an entry stands for."""
    covers = entry.get("covers")
    for pair in [[entry.get("id"), entry.get("fingerprint")], *(covers if isinstance(covers, list) else [])]:
        if _is_pair(pair):
            yield pair[0], pair[1]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _is_ours(form: Any) -> bool:
    """Whether a form holds what `packed` made and nothing else."""
    if not isinstance(form, dict) or set(form) != {"alerts"} or not isinstance(form["alerts"], list):
        return False
    return all(isinstance(one, dict) and _is_entry(one) for one in form["alerts"])


def _is_entry(one: dict[str, Any]) -> bool:
    """Whether a form's entry can be shown, counted and written again."""
    if not {"metric", "value", "limit", "message", "suggestion"} <= set(one) or one["suggestion"] not in ORDER:
        return False
    numbers = [value for value in (one["value"], one["limit"]) if value is not None]
    if not all(isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in numbers):
        return False
    if "covers" not in one:
        return _is_pair([one.get("id"), one.get("fingerprint")])
    return "id" not in one and isinstance(one["covers"], list) and all(map(_is_pair, one["covers"]))


def _join(session: Any, key: int, form: Any, new: list[Outside]) -> bool:
    """Put alerts into a run that waits; False where it has begun meanwhile, or somebody else wrote its form."""
    from airflow.models import DagRun
    from airflow.utils.state import DagRunState
    from sqlalchemy import update

    if not _is_ours(form):
        return False
    entries = packed(form["alerts"], new)
    still_waits = (DagRun.id == key, DagRun.state == DagRunState.QUEUED)
    if session.execute(update(DagRun).where(*still_waits).values(conf={"alerts": entries})).rowcount != 1:
        return False
    session.get(DagRun, key).note = note_of(entries)
    return True


def _trigger(session: Any, run_id: str, entries: list[dict[str, Any]]) -> None:
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.utils.types import DagRunTriggeredByType

    trigger_dag(
        DAG_ID,
        run_id=run_id,
        conf={"alerts": entries},
        note=note_of(entries),
        triggered_by=DagRunTriggeredByType.REST_API,
        triggering_user_name="alerts",
        session=session,
    )


def _lock_rows(session: Any) -> None:
    """Keep other API servers out until the session ends, where the database locks rows; SQLite has one server."""
    from airflow.models import DagModel
    from sqlalchemy import select

    session.scalars(select(DagModel).where(DagModel.dag_id == DAG_ID).with_for_update()).first()


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """One request at a time on this machine, whatever process has it."""
    home = Path(os.environ.get("AIRFLOW_HOME") or tempfile.gettempdir())
    path = home if os.access(home, os.W_OK) else Path(tempfile.gettempdir())
    with (path / f".alerts-{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cooldown_s() -> float:
    text = os.environ.get(COOLDOWN_VARIABLE) or str(COOLDOWN_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_COOLDOWN_S:
        rule = f"{COOLDOWN_VARIABLE} must be 0 to {MOST_COOLDOWN_S:.0f} seconds where the API server runs"
        raise Waiting(f"{rule}, it is {text!r:.40}")
    return seconds


def _told(run_id: str, alerts: int, told: str) -> dict[str, Any]:
    return {"run_id": run_id, "alerts": alerts, "told": told}
