"""Served images against the registered reference. The measuring is `mlx-tasks monitor`; here stands what follows."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Asset, Param, dag, task

from mlx_tasks.assets import QUALITY_ALERT

ALERT = Asset(QUALITY_ALERT)
PARAMS = {
    "window": Param(
        os.environ.get("ADO_WINDOW", ""),
        type="string",
        title="Window",
        description="Folder of served PNGs, as `mlx-tasks serve --keep FOLDER` fills it.",
    ),
    "model": Param(
        os.environ.get("ADO_SERVING_MODEL", "digits-sampler@serving"),
        type="string",
        pattern=r"^[^@/]+[@/][^@/]+$",
        title="Model",
        description="The registered version whose reference the window is held against.",
    ),
    "level": Param(
        0.01, type="number", minimum=0.002, maximum=0.2, title="Level", description="Share of false drift alarms."
    ),
    "max_quality_loss": Param(
        0.5,
        type="number",
        minimum=0.0,
        maximum=10.0,
        title="Quality loss",
        description="Rise of the Frechet distance over the registered one, as a fraction, that raises an alert.",
    ),
}
ACCELERATOR = {"pool": os.environ.get("ADO_POOL", "mlx"), "queue": os.environ.get("ADO_QUEUE", "default")}


@dag(
    schedule=os.environ.get("ADO_MONITOR_SCHEDULE") or None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["diffusion", "monitoring"],
    params=PARAMS,
    default_args={"retries": 1},
    max_active_runs=1,
    is_paused_upon_creation=True,
)
def monitor_quality():
    """Look at the newest served images; emit the asset `quality_alert` where they drifted or got worse.

    A two-sample test with a stated level of false alarms tells drift, the Frechet distance at equal counts tells
    quality, both against the reference that was registered with the bundle. Without an alert `alert` is skipped.
    """

    @task(**ACCELERATOR)
    def look(params=None) -> dict[str, Any]:
        from airflow.sdk.exceptions import AirflowFailException

        from mlx_tasks.serving.process import run_command

        if not params["window"]:
            raise AirflowFailException("no window: set ADO_WINDOW or the form's field to the folder of served images")
        options = {"window": "window", "model": "model", "level": "level", "max-quality-loss": "max_quality_loss"}
        arguments = [part for option, key in options.items() for part in (f"--{option}", str(params[key]))]
        report = run_command("monitor", *arguments)
        return {"alerts": report["alerts"], "measured": report["measured"], "version": report["version"]}

    @task(outlets=[ALERT])
    def alert(report: dict[str, Any], outlet_events=None) -> list[str]:
        from airflow.sdk.exceptions import AirflowSkipException

        if not report["alerts"]:
            raise AirflowSkipException("nothing to alert about")
        outlet_events[ALERT].extra = report
        return [f"{found['severity']} {found['name']}: {found['message']}" for found in report["alerts"]]

    alert(look())


monitor_quality()
