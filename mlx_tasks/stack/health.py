"""How the stack's parts say that they are well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from mlx_tasks.stack.layout import HOST, Layout

HEARTBEATS = ("scheduler", "dag-processor", "triggerer")
"""Parts that tell Airflow's database that they live; the API server passes it on."""


def ill_parts(layout: Layout) -> dict[str, str]:
    """Component -> what is wrong; empty when all are well."""
    ill: dict[str, str] = {}
    with httpx.Client(timeout=5, trust_env=False) as client:
        if not _answers(client, f"{layout.mlflow_url}/health"):
            ill["mlflow"] = f"no answer on {HOST}:{layout.mlflow_port}"
        try:
            health: dict[str, Any] = client.get(f"{layout.airflow_url}/api/v2/monitor/health").raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return {**ill, "api-server": "no answer", **dict.fromkeys(HEARTBEATS, "not known")}
    return ill | silent_parts(health)


def silent_parts(health: dict[str, Any]) -> dict[str, str]:
    """Of Airflow's own health answer: the parts whose heartbeat is old or missing, and since when."""
    ill = {}
    for name in HEARTBEATS:
        key = name.replace("-", "_")
        told = health.get(key) or {}
        if told.get("status") != "healthy":
            last = told.get(f"latest_{key}_heartbeat")
            ill[name] = f"no heartbeat since {last[:19].replace('T', ' ')} UTC" if last else "no heartbeat yet"
    return ill


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
