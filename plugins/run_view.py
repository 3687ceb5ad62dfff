"""The run view: a run's report and its progress, read from its workspace and shown on the run's page in Airflow.

Read-only, and only for whoever is logged in to Airflow. Runs are found by their slug, which holds no path separator,
and a report is shown without scripts: its words come from the user's dataset.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from mlx_tasks.progress import format_progress
from mlx_tasks.workspace.paths import Places, workspace_path

PREFIX = "/optimizer"
REFRESH_S = 3
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-popups"


def create_app() -> Any:
    """The FastAPI application, for Airflow's API server to mount at PREFIX."""
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.responses import HTMLResponse

    app = FastAPI(title="Optimizer runs", dependencies=[Depends(get_user)], openapi_url=None)

    @app.get("/runs/{run_id}/report", response_class=HTMLResponse)
    def report(run_id: str) -> HTMLResponse:
        """The report, or how far the run is while there is none."""
        page = report_page(Places.from_environment().state, run_id)
        if page is None:
            raise HTTPException(404, f"no workspace of run {run_id} on this machine")
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})

    @app.get("/runs/{run_id}/progress")
    def progress(run_id: str) -> dict[str, Any]:
        """How far each stage is, and how those that ended did."""
        workspace = workspace_path(Places.from_environment().state, run_id)
        if not workspace.is_dir():
            raise HTTPException(404, f"no workspace of run {run_id} on this machine")
        return {"run_id": run_id, "progress": _records(workspace, "progress"), "stages": _records(workspace, "stages")}

    return app


def report_page(state: Path, run_id: str) -> str | None:
    """The report's HTML, or a page of progress that renews itself; None where the run has no workspace here."""
    workspace = workspace_path(state, run_id)
    finished = workspace / "work" / "report" / "report.html"
    if finished.is_file():
        return finished.read_text(encoding="utf-8")
    return _progress_page(run_id, workspace) if workspace.is_dir() else None


def _progress_page(run_id: str, workspace: Path) -> str:
    ended = {record["target"]: record for record in _records(workspace, "stages") if record.get("seconds") is not None}
    lines = [format_progress(record) for record in _records(workspace, "progress")]
    lines += [f"{target}: {_outcome(record)}" for target, record in ended.items()]
    body = "\n".join(lines) or "no stage has told anything yet"
    return (
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{REFRESH_S}">'
        f"<title>{html.escape(run_id)}</title><style>body{{font:14px system-ui;margin:2em}}</style>"
        f"<h1>{html.escape(run_id)}</h1><p>There is no report yet. Progress:</p><pre>{html.escape(body)}</pre>"
    )


def _outcome(record: dict[str, Any]) -> str:
    if record.get("exit_code"):
        return f"failed: {record.get('message', '')}"
    return f"{'cached' if record.get('cached') else 'done'}, {record['seconds']:.1f} s"


def _records(workspace: Path, kind: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted((workspace / ".run" / kind).glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # it is being replaced
    return found
