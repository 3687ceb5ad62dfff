"""Served images against the registered reference. The measuring is `mlx-tasks monitor`; here stands what follows."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Asset, Param, dag, task

from mlx_tasks.assets import QUALITY_ALERT
from mlx_tasks.dag_settings import ACCELERATOR, RETRIES

ALERT = Asset(QUALITY_ALERT)
PARAMS = {
    "window": Param(
        os.environ.get("ADO_WINDOW", ""),
        type="string",
        title="Window",
        description="What `mlx-tasks serve --window FOLDER` fills.",
    ),
    "model": Param(
        os.environ.get("ADO_SERVING_MODEL", "digits-sampler@serving"),
        type="string",
        pattern=r"^[^@/]+[@/][^@/]+$",
        title="Model",
        description="The registered version whose reference the window is held against.",
    ),
    "level": Param(
        0.01, type="number", minimum=0.005, maximum=0.2, title="Level", description="Chance of a false alert in a look."
    ),
    "min_images": Param(
        60, type="integer", minimum=2, maximum=1000, title="Images", description="Fewer wait for the next look."
    ),
    "max_error_share": Param(
        0.02, type="number", exclusiveMinimum=0, exclusiveMaximum=1, title="Errors", description="Share that may fail."
    ),
    "max_latency_ms": Param(
        float(os.environ.get("ADO_MAX_LATENCY_MS", "0")),
        type="number",
        minimum=0,
        title="Latency (ms)",
        description="What 95 of 100 requests must stay below, waiting included; 0: no limit.",
    ),
    "cooldown_h": Param(
        6.0, type="number", minimum=0, title="Cooldown (h)", description="In which the same alert is not raised again."
    ),
}


@dag(
    schedule=os.environ.get("ADO_MONITOR_SCHEDULE") or None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["diffusion", "monitoring"],
    params=PARAMS,
    default_args=RETRIES,
    max_active_runs=1,
    is_paused_upon_creation=True,
)
def monitor_quality():
    """Look at what was served since the last look; emit the asset `quality_alert` where it got worse.

    Tests of a stated level compare images with the reference that was registered with the bundle; errors and latency
    are held against their limits. Each alert says what to do again, and `optimize_diffusion` starts there. `alert` is
    skipped where there is nothing new: an alert is news once, until it is resolved or has cooled down.
    """

    @task(**ACCELERATOR)
    def look(params=None, run_id: str | None = None) -> dict[str, Any]:
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        from mlx_tasks.errors import RETRYABLE
        from mlx_tasks.serving.process import CommandFailed, run_command

        if not params["window"]:
            raise AirflowFailException("no window: set ADO_WINDOW or the form's field to what the server records")
        arguments = [part for key in params for part in (f"--{key.replace('_', '-')}", str(params[key]))]
        try:
            report = run_command("monitor", *arguments, "--token", str(run_id))
        except CommandFailed as failure:
            kind = AirflowException if failure.code in RETRYABLE or failure.code < 0 else AirflowFailException
            raise kind(str(failure)) from None
        return {
            key: report[key] for key in ("alerts", "resolved", "suggestion", "measured", "window", "name", "version")
        }

    @task(outlets=[ALERT])
    def alert(report: dict[str, Any], outlet_events=None) -> list[str]:
        from airflow.sdk.exceptions import AirflowSkipException

        new = [found for found in report["alerts"] if found["status"] == "new"]
        if not new:
            raise AirflowSkipException(f"nothing new: {len(report['alerts'])} alerts are known already")
        words = [f"{found['severity']} {found['metric']}: {found['message']}" for found in new]
        if not report["suggestion"]:
            raise AirflowSkipException("nothing that the chain could mend: " + "; ".join(words))
        outlet_events[ALERT].extra = {key: value for key, value in report.items() if key != "measured"}
        return words

    alert(look())


monitor_quality()
