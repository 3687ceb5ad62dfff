"""A short chain of the real operators, put beside the real DAGs of a fleet under test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import Param, chain, dag, task

from mlx_tasks.form import fields
from stage_operator import CloseRunOperator, OpenRunOperator, StageOperator

PARAMS = {
    f.name: Param(f.default, description=f.description, title=f.title, **f.schema)
    for f in fields(Path(__file__).resolve().parent.parent)
}
DEFAULTS = {"retries": 3, "retry_delay": timedelta(seconds=1), "queue": "mlx", "pool": "mlx"}


@dag(start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None, params=PARAMS, default_args=DEFAULTS)
def fleet_chain():
    """Open, validate, train, one generation of the search, close."""
    opened = OpenRunOperator(task_id="open_run", queue="default")
    plan = StageOperator(task_id="plan", stage="search_plan", arguments={"generation": 0}, fan_out="search_trial")
    trials = StageOperator.partial(task_id="trial", stage="search_trial").expand(arguments=plan.output)
    closed = CloseRunOperator(task_id="close_run", last="train", queue="default")
    stages = [StageOperator(task_id=name, stage=name) for name in ("validate", "train")]
    chain(opened, *stages, plan)
    trials >> closed.as_teardown(setups=opened)


fleet_chain()


@dag(start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None, default_args=DEFAULTS)
def empty_chain():
    """Tasks that do nothing, one after the other: what the executor itself takes."""

    @task
    def nothing() -> None:
        pass

    chain(*(nothing.override(task_id=f"nothing_{number}")() for number in range(6)))


empty_chain()
