"""A new champion goes into service, or does not. The steps are `mlx-tasks deploy ...`; here stands their order."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Asset, Param, TriggerRule, dag, task

from mlx_tasks.assets import CHAMPION
from mlx_tasks.errors import RETRYABLE

PARAMS = {
    "model": Param(
        os.environ.get("ADO_MODEL", "digits-sampler@champion"),
        type="string",
        pattern=r"^[^@/]+[@/][^@/]+$",
        title="Model",
        description="NAME@ALIAS or NAME/VERSION in the registry. An asset event that names a version goes before it.",
    ),
    "url": Param(
        os.environ.get("ADO_SERVER_URL", ""),
        type="string",
        title="Server",
        description="Address of a server that follows the pointer; empty: only pointer and bundle are verified.",
    ),
}
ACCELERATOR = {"pool": os.environ.get("ADO_POOL", "mlx"), "queue": os.environ.get("ADO_QUEUE", "default")}


def reference(params: dict[str, Any], events: Any) -> str:
    """The model to deploy: what the newest asset event names, or the form's."""
    for found in (events or {}).values():
        for event in reversed(list(found)):
            extra = event.extra or {}
            if extra.get("model") and extra.get("version"):
                return f"{extra['model']}/{extra['version']}"
    return params["model"]


def step(*arguments: str) -> Any:
    """One step in a fresh process. Only ends that a retry can mend are retried."""
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    from mlx_tasks.serving.process import CommandFailed, run_command

    try:
        return run_command("deploy", *arguments)
    except CommandFailed as failure:
        kind = AirflowException if failure.code in RETRYABLE or failure.code < 0 else AirflowFailException
        raise kind(str(failure)) from None


@dag(
    schedule=[Asset(CHAMPION)],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["diffusion", "serving"],
    params=PARAMS,
    default_args={"retries": 1},
    max_active_runs=1,
    is_paused_upon_creation=True,
)
def deploy_champion():
    """Put a new champion into service: canary, swap, verify, and roll back if it does not serve.

    Starts on the asset `champion_model`, or by hand. The canary draws fixed seeds and holds them against the reference
    that was registered with the bundle. `swap` lets a pointer file and the alias `serving` name the new version;
    a server started with `mlx-tasks serve --pointer` takes it within a second. If `verify` fails, `roll_back` undoes
    this run's swap, and the run ends red.
    """

    @task(**ACCELERATOR)
    def canary(params=None, triggering_asset_events=None) -> dict[str, Any]:
        found = step("canary", "--model", reference(params, triggering_asset_events))
        return {"model": f"{found['name']}/{found['version']}", "measured": found["measured"]}

    @task
    def swap(found: dict[str, Any], run_id: str | None = None) -> dict[str, Any]:
        return step("swap", "--model", found["model"], "--token", str(run_id))

    @task(**ACCELERATOR)
    def verify(params=None) -> dict[str, Any]:
        url = params["url"]
        return step("verify", *(["--url", url] if url else []))

    @task(trigger_rule=TriggerRule.ONE_FAILED, retries=0)
    def roll_back(run_id: str | None = None) -> None:
        from airflow.sdk.exceptions import AirflowFailException

        now = step("rollback", "--token", str(run_id))
        serving = f"{now['name']} {now['version']}".strip() if now else "nothing"
        raise AirflowFailException(f"the new champion does not serve; serving now: {serving}")

    swap(canary()) >> verify() >> roll_back()


deploy_champion()
