"""What answers requests of others: an answer comes, in time, and it is never the server's own failure."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib
import json
import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzing.mutate import damaged_bytes, damaged_json

ROOT = Path(__file__).resolve().parents[2]
BODIES: list[dict[str, Any]] = [
    {"prompt": "a handwritten two", "n": 2, "seed": 7, "user": "someone"},
    {"class": "one", "steps": 4, "solver": "ddim", "grid": "karras", "guidance": 2.0, "strip": 3},
    {"prompt": "zero", "quality": "fast", "model": "digits", "size": "auto", "background": "auto", "stream": False},
]
REQUEST = (
    b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 17\r\nConnection: close\r\n\r\n"
    b'{"prompt": "two"}'
)
ALERTS: list[dict[str, Any]] = [
    {"alerts": [{"metric": "mmd", "value": 0.3, "limit": 0.1, "message": "worse", "suggestion": "tune", "began": "1"}]},
    {"status": "firing", "alerts": [
        {"status": "firing", "labels": {"alertname": "Slipped", "redo": "train", "metric": "mmd"},
         "annotations": {"value": "0.3", "summary": "worse"}, "startsAt": "2026-01-01T00:00:00Z", "fingerprint": "ab"},
    ]},
]  # fmt: skip
SECRET = "a-secret-of-sixteen-characters"


def image_request(port: int, seed: int) -> str:
    """What one damaged request to a real server found; nothing where an answer below 500 came.

    429 and 503 with a Retry-After are answers too: the queue is full.
    """
    rng = random.Random(f"http {seed}")
    if rng.random() < 0.7:
        data = damaged_json(rng.choice(BODIES), rng)
        head = (
            f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        sent = head.encode() + data
    else:
        sent = damaged_bytes(REQUEST, b"\r\n\x00 HTTP/9.9 Transfer-Encoding: chunked\r\n\r\nffffffff\r\n%00../", rng)
    status = _exchange(port, sent)
    if status in (None, 429, 503) or 100 <= status < 500:
        return ""
    return f"status {status} for {sent[:200]!r}"


def _exchange(port: int, sent: bytes, patience_s: float = 60.0) -> int | None:
    """The status of the answer, or None where the server closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            while connection.recv(65536):
                pass
        except (ConnectionResetError, BrokenPipeError):
            return None
    line = answer.split(b"\r\n", 1)[0].split()
    return int(line[1]) if len(line) > 1 and line[1].isdigit() else None


class Receiver(contextlib.ExitStack):
    """plugins/alert_receiver.py's app in this process; a run is taken as made once its form can be written as JSON."""

    def __init__(self) -> None:
        super().__init__()
        from starlette.testclient import TestClient

        self.enter_context(mock.patch.dict(os.environ, {"ADO_ALERT_TOKEN": SECRET, "ADO_ALERT_SECRET": SECRET}))
        if (folder := str(ROOT / "plugins")) not in sys.path:
            sys.path.append(folder)  # as Airflow does
        self.runs = importlib.import_module("alert_runs")
        receiver = importlib.import_module("alert_receiver")
        self.enter_context(mock.patch.object(receiver, "start_run", self._start_run))
        self.client = TestClient(receiver.create_app(), raise_server_exceptions=False)

    def _start_run(self, alerts: list[Any]) -> dict[str, Any]:
        """Everything but Airflow: the form and the note of the run, as a database takes them."""
        entries = self.runs.packed([], alerts)
        (json.dumps(entries, allow_nan=False, ensure_ascii=False) + self.runs.note_of(entries)).encode()
        return {"run_id": "alert__x", "alerts": len(alerts), "told": "a run was made"}

    def alert(self, seed: int) -> str:
        """What one damaged webhook found; nothing where the answer is below 500."""
        rng = random.Random(f"alert {seed}")
        data = damaged_json(rng.choice(ALERTS), rng)
        route = rng.choice(("alertmanager", "grafana", "generic"))
        at = str(int(time.time()))
        signed = hmac.new(SECRET.encode(), f"{at}:".encode() + data, hashlib.sha256).hexdigest()
        name = "X-Grafana-Alerting" if route == "grafana" else "X-Alert"
        headers = {"Authorization": f"Bearer {SECRET}", f"{name}-Signature": signed, f"{name}-Timestamp": at}
        answer = self.client.post(f"/{route}", content=data, headers=headers)
        return "" if answer.status_code < 500 else f"status {answer.status_code} {answer.text[:200]} for {data[:200]!r}"
