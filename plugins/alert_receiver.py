"""The way in for outside alerts: webhooks that start `optimize_diffusion`, mounted by Airflow's API server at /alerts.

    POST /alerts/alertmanager   Alertmanager's webhook, with the bearer token ADO_ALERT_TOKEN
    POST /alerts/grafana        Grafana's webhook, signed with ADO_ALERT_SECRET (HMAC, with timestamp)
    POST /alerts/generic        {"alerts": [{"metric", "value", "limit", "message", "suggestion", ...}]}, signed alike

A run is made in Airflow's own database, so it needs no API token, and waits there where no scheduler runs. Whoever
sends an alert again finds its run; alerts that come while a run of alerts still waits join that run. A 4xx says that
sending the same again is no help, a 5xx that nothing was kept: send again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from alert_runs import Outside, Waiting, start_run

logger = logging.getLogger(__name__)

PREFIX = "/alerts"
TOKEN_VARIABLE, SECRET_VARIABLE = "ADO_ALERT_TOKEN", "ADO_ALERT_SECRET"
MAX_BODY_BYTES = 8 * 1024 * 1024
"""Some ten thousand alerts as Alertmanager writes them."""
STALE_S = 300.0
"""Age, or distance into the future, from which a signature is no longer taken."""
SIGNATURES = {
    "grafana": ("X-Grafana-Alerting-Signature", "X-Grafana-Alerting-Timestamp"),
    "generic": ("X-Alert-Signature", "X-Alert-Timestamp"),
}
"""Headers with the hex HMAC-SHA256 of `timestamp:body`, and with the timestamp (Unix seconds)."""
SUGGESTIONS = ("tune", "distill", "train", "validate")
ASKED = f"(by the label redo or the suggestion: {', '.join(SUGGESTIONS)})"
SHOWN = 300
"""Characters of an answer's reason."""


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
    found, unknown = [], []
    for one in _listed(payload):
        if one.get("status", payload.get("status")) != "firing":
            continue
        labels, notes = dict(one.get("labels") or {}), dict(one.get("annotations") or {})
        if labels.get("redo") not in SUGGESTIONS:
            unknown += [labels["redo"]] if labels.get("redo") else []
            continue
        found.append(
            Outside(
                metric=_text(labels.get("metric") or labels.get("alertname") or "alert", 100),
                value=_number(notes.get("value")),
                limit=_number(notes.get("limit")),
                message=_text(notes.get("summary") or notes.get("description") or labels.get("alertname"), 500),
                suggestion=labels["redo"],
                fingerprint=_fingerprint(one.get("fingerprint"), labels),
                began=_text(one.get("startsAt"), 64),
                window=_text(notes.get("window"), 100),
            )
        )
    if unknown:
        known = ", ".join(SUGGESTIONS)
        logger.warning("alerts=passed-over count=%d redo=%.80r: must be one of %s", len(unknown), unknown[0], known)
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
            told = f"{one['suggestion']!r:.80}"
            raise ValueError(f"alert {place}: suggestion must be one of {', '.join(SUGGESTIONS)}, got {told}")
        found.append(
            Outside(
                metric=_text(one["metric"], 100),
                value=_number(one.get("value")),
                limit=_number(one.get("limit")),
                message=_text(one["message"], 500),
                suggestion=one["suggestion"],
                fingerprint=_fingerprint(one.get("fingerprint"), [one["metric"], one.get("model", "")]),
                began=_text(one.get("began"), 64),
                window=_text(one.get("window"), 100),
            )
        )
    return found


async def _receive(request: Request, read: Any) -> dict[str, Any]:
    """Read the alerts and start a run for those that are new."""
    from starlette.concurrency import run_in_threadpool

    body = await _body(request)
    try:
        payload = json.loads(body)
        if not isinstance(payload, dict):
            raise ValueError(f"the body must be a JSON object, got {type(payload).__name__}")
        alerts = read(payload)
    except RecursionError:
        raise _refused(400, "no alerts could be read: the JSON is nested too deep") from None
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise _refused(400, f"no alerts could be read: {error}") from None
    if not alerts:
        return {"run_id": None, "alerts": 0, "told": f"nothing fires that asks for a run {ASKED}"}
    try:
        return await run_in_threadpool(start_run, alerts)
    except Waiting as error:
        raise _refused(503, f"not kept, send it again: {error}") from None
    except Exception as error:  # the database is away, or the DAG is not there yet: the sender tries again
        raise _refused(503, f"not kept, send it again: {type(error).__name__}: {error}") from error


def _refused(status: int, text: str) -> HTTPException:
    """An answer whose reason is short and can be written whatever was sent."""
    return HTTPException(status, text.encode("ascii", "backslashreplace").decode()[:SHOWN])


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
    if not secret or not right or not _is_count(at):
        raise HTTPException(401, f"{signature} must be the HMAC-SHA256 of 'timestamp:body' under {SECRET_VARIABLE}")
    if abs(time.time() - int(at)) > STALE_S:
        raise HTTPException(
            401, f"{timestamp} must be within {STALE_S:g} s of now: is a clock off, or was this replayed?"
        )


async def _body(request: Request) -> bytes:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise _refused(415, f"a body is taken as it is: send it without Content-Encoding, got {coding!r:.40}")
    length = request.headers.get("content-length", "")
    if not _is_count(length) or int(length) > MAX_BODY_BYTES:
        raise HTTPException(413, f"a body needs a Content-Length of at most {MAX_BODY_BYTES} bytes: send it in parts")
    return await request.body()


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def _listed(payload: dict[str, Any]) -> list[dict[str, Any]]:
    found = payload.get("alerts")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("'alerts' must be a list of objects")
    return found


def _text(value: Any, most: int) -> str:
    """A value as text of at most so many characters.  Raises: ValueError for what no database keeps."""
    text = "" if value is None else str(value)
    for sign in text:
        if sign == "\0" or "\ud800" <= sign <= "\udfff":
            raise ValueError(f"texts hold neither NUL nor lone surrogates, got {text!r:.80}")
    return text[:most]


def _fingerprint(told: Any, of: Any) -> str:
    """What the sender calls the alert, or a digest of what makes it; one too long ends in its own digest."""
    text = _text(told, MAX_BODY_BYTES)
    return (text if len(text) <= 64 else f"{text[:47]}-{_digest(text)}") or _digest(of)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
