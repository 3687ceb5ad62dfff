"""The main job as Airflow sees it. What each node does is a stage of dvc.yaml; this file only says in what order."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable, Param, TaskGroup, chain, dag

from mlx_tasks.assets import QUALITY_ALERT
from mlx_tasks.catalog import SEARCH_GENERATIONS
from mlx_tasks.dag_settings import ACCELERATOR, RETRIES
from mlx_tasks.form import fields
from stage_operator import AnnounceOperator, CloseRunOperator, OpenRunOperator, ReportOperator, StageOperator

REPOSITORY = Path(os.environ.get("ADO_REPOSITORY") or Path(__file__).resolve().parent.parent)
PARAMS = {f.name: Param(f.default, description=f.description, title=f.title, **f.schema) for f in fields(REPOSITORY)}
LIGHT = {"pool": "default_pool", "queue": ACCELERATOR["queue"]}
SLOT = "slot {{ task.arguments['slot'] }}"
"""What the grid calls a mapped task."""

ALERTS = [Asset(QUALITY_ALERT)]
CRON = os.environ.get("ADO_SCHEDULE")


@dag(
    # An alert starts it, and a schedule where one is set.
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable(CRON, timezone="UTC"), assets=ALERTS)
    if CRON
    else ALERTS,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    tags=["diffusion", "mlx"],
    params=PARAMS,
    default_args={**RETRIES, **ACCELERATOR},
    max_active_runs=2,
)
def optimize_diffusion():
    """Validate a dataset, train, distill, search, tune, evaluate, and register the best sampler found.

    It runs by hand, on a schedule (ADO_SCHEDULE), and on the asset `quality_alert`: then it begins again at the stage
    that the alert suggests, with all before it from the version that slipped, and the reason stands in its notes.

    Every node runs one stage of `dvc.yaml` in the run's own workspace; a stage whose inputs have not changed says
    *cached*. `open_run` checks the parameters before anything is trained; `close_run` commits what was made on the
    branch `runs/...`, whatever became of the run. A gate that refuses a promotion is no failure: the report says why.
    Where a version was promoted, `announce` emits the asset `champion_model`, on which `deploy_champion` starts.
    """
    opened = OpenRunOperator(task_id="open_run", pool="default_pool", queue="default")
    validated = StageOperator(task_id="validate", stage="validate", **LIGHT)
    taught = StageOperator(task_id="train", stage="train")
    distilled = StageOperator(task_id="distill", stage="distill")

    with TaskGroup("search") as searched:
        generations = []
        for generation in range(SEARCH_GENERATIONS):
            plan = StageOperator(
                task_id=f"plan_{generation}",
                stage="search_plan",
                arguments={"generation": generation},
                fan_out="search_trial",
                **LIGHT,
            )
            trials = StageOperator.partial(
                task_id=f"trial_{generation}", stage="search_trial", map_index_template=SLOT
            ).expand(arguments=plan.output)
            generations += [plan, trials]
        chain(*generations, StageOperator(task_id="select", stage="search_select"))

    tuned = StageOperator(task_id="tune", stage="tune")

    with TaskGroup("evaluate") as evaluated:
        features = StageOperator(task_id="features", stage="features")
        image_text = StageOperator(task_id="image_text", stage="image_text", fan_out="score_share")
        shares = StageOperator.partial(task_id="score", stage="score_share", map_index_template=SLOT)
        gathered = StageOperator(task_id="gather", stage="evaluate")
        chain(features, image_text, shares.expand(arguments=image_text.output), gathered)

    with TaskGroup("register") as registered:
        promoted = StageOperator(task_id="register", stage="register", commit="before", queue="default")
        promoted >> ReportOperator(task_id="report", stage="report", commit="after", **LIGHT)

    announced = AnnounceOperator(task_id="announce", register=promoted.task_id, pool="default_pool", queue="default")
    closed = CloseRunOperator(task_id="close_run", last="report", pool="default_pool", queue="default")
    chain(opened, validated, taught, distilled, searched, tuned, evaluated, registered)
    registered >> announced
    registered >> closed.as_teardown(setups=opened)


optimize_diffusion()
