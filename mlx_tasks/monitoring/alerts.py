"""Alerts: what was breached by how much, what to do again, and which of them are news."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json

Start = Literal["tune", "distill", "train", "validate", ""]
"""The stage from which the chain begins again; empty: nothing of it would help."""

ORDER: tuple[Start, ...] = ("", "tune", "distill", "train", "validate")
SLIGHT, PLAIN = 1.5, 4.0
"""Times the registered Frechet distance up to which other steps are tried, and other students."""


@dataclass(frozen=True)
class Alert:
    """One breach.

    Attributes:
        metric: what was measured.
        value, limit: what it was, and what it may be.
        severity: critical, or warning.
        message: for people.
        suggestion: where the chain should begin again.
        fingerprint: equal for the same breach of the same model.
    """

    metric: str
    value: float
    limit: float
    severity: Literal["critical", "warning"]
    message: str
    suggestion: Start
    fingerprint: str


def alert(
    model: str,
    metric: str,
    value: float,
    limit: float,
    message: str,
    suggestion: Start,
    severity: Literal["critical", "warning"] = "critical",
) -> Alert:
    """An alert of a model, with its fingerprint.  model: what tells it from others, such as its digest."""
    fingerprint = hashlib.sha256(json.dumps([model, metric]).encode()).hexdigest()[:16]
    return Alert(metric, value, limit, severity, message, suggestion, fingerprint)


def furthest(suggestions: Sequence[str]) -> Start:
    """Of several suggestions the one that begins earliest in the chain, which does what the others ask for too."""
    known: list[Start] = [one for one in ORDER if one in suggestions]
    return known[-1] if known else ""


def what_to_redo(metric: str, rise: float) -> Start:
    """The chain's part that can mend a breach of quality.

    rise: the window's Frechet distance over the registered one's. A slight loss asks for other steps; a plain one, or
    images that are sane and too much alike, for other students; more, or images of the wrong class, for a new teacher.
    """
    if metric == "class_drift" or rise > PLAIN:
        return "train"
    if metric == "coverage" or rise > SLIGHT:
        return "distill"
    return "tune"


def _further(suggestion: Start, tried: int) -> Start:
    """The stage as many before the suggested one as it was tried in vain; no further back than `train`."""
    if not suggestion:
        return ""
    place = ORDER.index(suggestion)
    return ORDER[max(place, min(place + tried, ORDER.index("train")))]


class Ledger:
    """What a monitor has said so far, in a file beside the window.

        {"until": {what: Unix time}, "alerts": {fingerprint: {...}}, "last": {"token", "report"}}

    A look at rows that were looked at before would find the same again, so every row is looked at once; an alert that
    was raised is news again after a cooldown only, and asks then for one stage more, since what it asked for before did
    not mend it; and a look repeated under one token gets the first one's report.
    """

    def __init__(self, path: Path) -> None:
        """Raises: DataError for a file that is no ledger."""
        self._path = path
        self._told: dict[str, Any] = {"until": {}, "alerts": {}, "last": {}}
        if path.is_file():
            try:
                self._told |= read_json(path)
            except (OSError, ValueError, TypeError) as error:
                raise DataError(f"{path} is no ledger of alerts ({error}): remove it to begin anew") from None

    def report_of(self, token: str) -> dict[str, Any] | None:
        """What was found under this token, if it was the last one."""
        last = self._told["last"]
        return last["report"] if token and last.get("token") == token else None

    def looked_until(self, what: str) -> float:
        """When the newest row that was looked at was made (Unix time); -1.0 for none."""
        return float(self._told["until"].get(what, -1.0))

    def enter(
        self,
        alerts: Sequence[Alert],
        measured: Sequence[str],
        prefix: str,
        now: float,
        cooldown_s: float,
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """(the alerts, each with status "new" or "repeated"; the fingerprints that are resolved).

        measured: metrics that were looked at; one of them that is no longer breached is resolved.
        prefix: the model's digest.
        """
        known, told = self._told["alerts"], []
        for one in alerts:
            before = known.get(one.fingerprint)
            raised, tried = now, 0
            if before is not None and not before["resolved"]:
                tried = before.get("tried", 0)
                if now - before["raised"] < cooldown_s:
                    raised = before["raised"]
                else:
                    tried += 1
            known[one.fingerprint] = {
                "metric": one.metric,
                "model": prefix,
                "raised": raised,
                "resolved": False,
                "tried": tried,
            }
            status = {"status": "new" if raised == now else "repeated", "suggestion": _further(one.suggestion, tried)}
            told.append({**asdict(one), **status})
        breached = {one.fingerprint for one in alerts}
        resolved = [
            fingerprint
            for fingerprint, one in known.items()
            if fingerprint not in breached
            and one["model"] == prefix
            and one["metric"] in measured
            and not one["resolved"]
        ]
        for fingerprint in resolved:
            known[fingerprint]["resolved"] = True
        return told, resolved

    def close(self, until: dict[str, float], token: str, report: dict[str, Any]) -> None:
        """Write it, whole.  until: {what was looked at: when its newest row was made}."""
        self._told["until"] |= until
        self._told["last"] = {"token": token, "report": report}
        write_json(self._path, self._told)
