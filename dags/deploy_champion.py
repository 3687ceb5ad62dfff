"""A new champion goes into service, or does not. The steps are `mlx-tasks deploy ...`; here stands their order."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Asset, Param, TriggerRule, dag, task

from mlx_tasks.assets import CHAMPION, in_order
from mlx_tasks.dag_settings import ACCELERATOR, RETRIES
from mlx_tasks.errors import RETRYABLE
from mlx_tasks.serving.addresses import configured

SERVERS = configured(os.environ)
PARAMS = {
    "model": Param(
        os.environ.get("ADO_MODEL", "digits-sampler@champion"),
        type="string",
        pattern=r"^[^@/]+[@/][^@/]+$",
        title="Model",
        description="NAME@ALIAS or NAME/VERSION in the registry. An asset event that names a version goes before it.",
    ),
    "url": Param(
        SERVERS[0] if os.environ.get("ADO_SERVER_URL") else "",
        type="string",
        enum=[*SERVERS, ""],
        title="Server",
        description="A server of ADO_SERVER_URL or ADO_SERVER_URLS that follows the alias `serving`; empty: "
        "only alias and bundle are verified.",
    ),
}
WHY = "why"
"""XCom key of a step's last words."""


def reference(params: dict[str, Any], events: Any) -> str:
    """The model to deploy: what the newest asset event names, or the form's."""
    for event in reversed(in_order(events)):
        extra = event.extra or {}
        if extra.get("model") and extra.get("version"):
            return f"{extra['model']}/{extra['version']}"
    return params["model"]


def step(*arguments: str, ti: Any = None) -> Any:
    """One step in a fresh process. Ends that a retry can mend are retried; the last words are kept for `roll_back`."""
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    from mlx_tasks.serving.process import CommandFailed, run_command

    try:
        return run_command("deploy", *arguments)
    except CommandFailed as failure:
        if ti is not None:
            ti.xcom_push(key=WHY, value=str(failure))
        kind = AirflowException if failure.code in RETRYABLE or failure.code < 0 else AirflowFailException
        raise kind(str(failure)) from None


@dag(
    schedule=[Asset(CHAMPION)],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["diffusion", "serving"],
    params=PARAMS,
    default_args=RETRIES,
    max_active_runs=1,
    is_paused_upon_creation=True,
)
def deploy_champion():
    """Put a new champion into service: canary, swap, verify, and roll back if it does not serve.

    Starts on the asset `champion_model`, or by hand. The canary draws fixed seeds and holds them against the reference
    that was registered with the bundle. `swap` lets the alias `serving` name the new version; a server started with
    `mlx-tasks serve --model NAME@serving` fetches it, tries it out beside the old one and takes it between two batches.
    `verify` asks the server for an image and compares it. If it fails, `roll_back` undoes this run's swap, and the run
    ends red with the reason.
    """

    @task(**ACCELERATOR)
    def canary(params=None, triggering_asset_events=None, ti=None) -> dict[str, Any]:
        found = step("canary", "--model", reference(params, triggering_asset_events), ti=ti)
        return {"name": found["name"], "version": found["version"], "measured": found["measured"]}

    @task
    def swap(found: dict[str, Any], run_id: str | None = None, ti=None) -> dict[str, Any]:
        return step("swap", "--model", f"{found['name']}/{found['version']}", "--token", str(run_id), ti=ti)

    @task(**ACCELERATOR)
    def verify(swapped: dict[str, Any], params=None, ti=None) -> dict[str, Any]:
        url = params["url"]
        return step("verify", "--model", swapped["name"], *(["--url", url] if url else []), ti=ti)

    @task(trigger_rule=TriggerRule.ONE_FAILED, retries=0)
    def roll_back(params=None, run_id: str | None = None, ti=None) -> None:
        from airflow.sdk.exceptions import AirflowFailException

        found = ti.xcom_pull(task_ids="canary") or {}
        name = found.get("name") or re.split("[@/]", params["model"])[0]
        whys = [words for words in ti.xcom_pull(task_ids=["canary", "swap", "verify"], key=WHY) or [] if words]
        why = whys[-1] if whys else "see the task that failed"
        now = step("rollback", "--model", name, "--token", str(run_id), f"--why={why[:500]}")
        serving = f"{name} {now['version']}" if now["version"] else "nothing"
        raise AirflowFailException(f"the new champion does not serve ({why}); serving now: {serving}")

    verify(swap(canary())) >> roll_back()


deploy_champion()
