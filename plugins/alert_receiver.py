"""The way in for outside alerts: webhooks that start `optimize_diffusion`, mounted by Airflow's API server at /alerts.

    POST /alerts/alertmanager   Alertmanager's webhook, with the bearer token ADO_ALERT_TOKEN
    POST /alerts/grafana        Grafana's webhook, signed with ADO_ALERT_SECRET (HMAC, with timestamp)
    POST /alerts/generic        {"alerts": [{"metric", "value", "limit", "message", "suggestion", ...}]}, signed alike

A run is made in Airflow's own database, so it needs no API token, and waits there where no scheduler runs. Its id
derives from the alerts: whoever sends one again finds its run. An answer other than 2xx means that nothing was kept:
send again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI, HTTPException, Request

PREFIX = "/alerts"
DAG_ID = "optimize_diffusion"
TOKEN_VARIABLE, SECRET_VARIABLE, COOLDOWN_VARIABLE = "ADO_ALERT_TOKEN", "ADO_ALERT_SECRET", "ADO_ALERT_COOLDOWN_S"
MAX_BODY_BYTES = 256 * 1024
MAX_ALERTS = 50
STALE_S = 300.0
"""Age, or distance into the future, from which a signature is no longer taken."""
COOLDOWN_S = 6 * 3600.0
"""In which an alert of one fingerprint starts no second run, although it was resolved and fired again."""
SIGNATURES = {
    "grafana": ("X-Grafana-Alerting-Signature", "X-Grafana-Alerting-Timestamp"),
    "generic": ("X-Alert-Signature", "X-Alert-Timestamp"),
}
"""Headers with the hex HMAC-SHA256 of `timestamp:body`, and with the timestamp (Unix seconds)."""
SUGGESTIONS = ("tune", "distill", "train", "validate")


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


def create_app() -> FastAPI:
    """The FastAPI application, for Airflow's API server to mount at PREFIX."""
    app = FastAPI(title="Alerts", openapi_url=None)

    @app.post("/alertmanager")
    async def alertmanager(request: Request) -> dict[str, Any]:
        """Prometheus' Alertmanager."""
        _check_bearer(request)
        return await _receive(request, prometheus_alerts)

    @app.post("/grafana")
    async def grafana(request: Request) -> dict[str, Any]:
        """Grafana's alerting."""
        await _check_signature(request, "grafana")
        return await _receive(request, prometheus_alerts)

    @app.post("/generic")
    async def generic(request: Request) -> dict[str, Any]:
        """Anything else."""
        await _check_signature(request, "generic")
        return await _receive(request, generic_alerts)

    return app


def prometheus_alerts(payload: dict[str, Any]) -> list[Outside]:
    """The firing alerts of Alertmanager's or Grafana's webhook that say by the label `redo` what should be done again.

    Raises: ValueError for another shape.
    """
    found = []
    for one in _listed(payload):
        if one.get("status", payload.get("status")) != "firing":
            continue
        labels, notes = dict(one.get("labels") or {}), dict(one.get("annotations") or {})
        if labels.get("redo") not in SUGGESTIONS:
            continue
        fingerprint = str(one.get("fingerprint") or _digest(labels))
        found.append(
            Outside(
                metric=str(labels.get("metric") or labels.get("alertname") or "alert")[:100],
                value=_number(notes.get("value")),
                limit=_number(notes.get("limit")),
                message=str(notes.get("summary") or notes.get("description") or labels.get("alertname") or "")[:500],
                suggestion=labels["redo"],
                fingerprint=fingerprint[:64],
                began=str(one.get("startsAt") or ""),
                window=str(notes.get("window") or "")[:100],
            )
        )
    return found


def generic_alerts(payload: dict[str, Any]) -> list[Outside]:
    """The alerts of the generic webhook.  Raises: ValueError naming what is missing."""
    found = []
    for place, one in enumerate(_listed(payload)):
        if one.get("status", "firing") != "firing":
            continue
        missing = [name for name in ("metric", "message", "suggestion") if not one.get(name)]
        if missing:
            raise ValueError(f"alert {place} lacks {', '.join(missing)}")
        if one["suggestion"] not in SUGGESTIONS:
            raise ValueError(
                f"alert {place}: suggestion must be one of {', '.join(SUGGESTIONS)}, got {one['suggestion']!r}"
            )
        fingerprint = str(one.get("fingerprint") or _digest([one["metric"], one.get("model", "")]))
        found.append(
            Outside(
                str(one["metric"])[:100],
                _number(one.get("value")),
                _number(one.get("limit")),
                str(one["message"])[:500],
                one["suggestion"],
                fingerprint[:64],
                str(one.get("began") or ""),
                str(one.get("window") or "")[:100],
            )
        )
    return found


def note_of(alerts: list[Outside]) -> str:
    """What stands on the run: metric, value, limit and window of each alert."""
    lines = []
    for one in alerts:
        value = "" if one.value is None else f" {one.value:.4g}"
        limit = "" if one.limit is None else f" (limit {one.limit:.4g})"
        window = f", window {one.window}" if one.window else ""
        lines.append(f"{one.metric}{value}{limit}{window}: {one.message}")
    return "Started by alerts:\n" + "\n".join(lines)


async def _receive(request: Request, read: Any) -> dict[str, Any]:
    """Read the alerts and start a run for those that are new."""
    from starlette.concurrency import run_in_threadpool

    try:
        payload = json.loads(await _body(request))
        if not isinstance(payload, dict):
            raise ValueError(f"the body must be a JSON object, got {type(payload).__name__}")
        alerts = read(payload)
    except (ValueError, TypeError, AttributeError) as error:
        raise HTTPException(400, f"no alerts could be read: {error}") from None
    if not alerts:
        return {"run_id": None, "alerts": 0, "told": "nothing fires that asks for a run"}
    try:
        return await run_in_threadpool(start_run, alerts)
    except Exception as error:  # the database is away, or the DAG is not there yet: the sender tries again
        raise HTTPException(503, f"not kept, send it again: {type(error).__name__}: {error}") from error


def start_run(alerts: list[Outside]) -> dict[str, Any]:
    """A run of the chain for the alerts that have none yet; what became of them."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.exceptions import DagRunAlreadyExists
    from airflow.utils.types import DagRunTriggeredByType
    from sqlalchemy.exc import IntegrityError

    known, cooling = _known()
    new = [one for one in alerts if one.id not in known and one.fingerprint not in cooling]
    if not new:
        runs = sorted({known.get(one.id) or cooling[one.fingerprint] for one in alerts})
        return {"run_id": runs[-1], "alerts": len(alerts), "told": "these have their run already"}
    run_id = "alert__" + _digest(sorted(one.id for one in new))
    told = [asdict(one) | {"id": one.id, "status": "new"} for one in new]
    try:
        trigger_dag(
            DAG_ID,
            run_id=run_id,
            conf={"alerts": told},
            note=note_of(new)[:1000],
            triggered_by=DagRunTriggeredByType.REST_API,
            triggering_user_name="alerts",
        )
    except (DagRunAlreadyExists, IntegrityError):  # another request was faster
        return {"run_id": run_id, "alerts": len(new), "told": "these have their run already"}
    return {"run_id": run_id, "alerts": len(new), "told": "a run was made"}


def _known() -> tuple[dict[str, str], dict[str, str]]:
    """({alert id: run}, {fingerprint: run}) of runs that alerts made: of all, and of those within the cooldown."""
    from airflow.models import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    since = datetime.now(UTC) - timedelta(seconds=float(os.environ.get(COOLDOWN_VARIABLE) or COOLDOWN_S))
    ids: dict[str, str] = {}
    fingerprints: dict[str, str] = {}
    with create_session() as session:
        made = select(DagRun).where(DagRun.dag_id == DAG_ID, DagRun.run_id.like("alert\\_\\_%", escape="\\"))
        for run in session.scalars(made.order_by(DagRun.id.desc()).limit(1000)):
            for one in (run.conf or {}).get("alerts") or []:
                ids.setdefault(one["id"], run.run_id)
                if run.queued_at is None or run.queued_at >= since:
                    fingerprints.setdefault(one["fingerprint"], run.run_id)
    return ids, fingerprints


def _check_bearer(request: Request) -> None:
    expected = os.environ.get(TOKEN_VARIABLE, "")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if not expected or scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected.encode()):
        raise HTTPException(401, f"a bearer token is needed, that of {TOKEN_VARIABLE}")


async def _check_signature(request: Request, sender: str) -> None:
    signature, timestamp = SIGNATURES[sender]
    secret = os.environ.get(SECRET_VARIABLE, "")
    at, given = request.headers.get(timestamp, ""), request.headers.get(signature, "")
    text = at.encode() + b":" + await _body(request)
    right = hmac.compare_digest(hmac.new(secret.encode(), text, hashlib.sha256).hexdigest().encode(), given.encode())
    if not secret or not right or not at.isdigit():
        raise HTTPException(401, f"{signature} must be the HMAC-SHA256 of 'timestamp:body' under {SECRET_VARIABLE}")
    if abs(time.time() - int(at)) > STALE_S:
        raise HTTPException(
            401, f"{timestamp} must be within {STALE_S:g} s of now: is a clock off, or was this replayed?"
        )


async def _body(request: Request) -> bytes:
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        raise HTTPException(413, f"a body needs a length of at most {MAX_BODY_BYTES} bytes")
    return await request.body()


def _listed(payload: dict[str, Any]) -> list[dict[str, Any]]:
    found = payload.get("alerts")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("'alerts' must be a list of objects")
    if len(found) > MAX_ALERTS:
        raise ValueError(f"at most {MAX_ALERTS} alerts at once, got {len(found)}")
    return found


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
