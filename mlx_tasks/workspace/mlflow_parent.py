"""The MLflow run above a DAG run's stages: made before the first stage, ended after the last."""

from __future__ import annotations

import contextlib
import logging
import os

from mlx_tasks.errors import StageError
from mlx_tasks.tracking.rest import (
    DEFAULT_EXPERIMENT,
    EXPERIMENT_VARIABLE,
    MlflowRest,
    now_ms,
    run_url,
    tracking_uri,
)

logger = logging.getLogger(__name__)

PARENT_VARIABLE = "MLX_TASKS_MLFLOW_PARENT"
START_PATIENCE_S = 10.0


def start_parent(name: str, tags: dict[str, str]) -> tuple[str | None, str | None]:
    """(id, address) of a fresh MLflow run, or Nones where MLFLOW_TRACKING_URI is unset.

    Raises: UnavailableError if the server does not answer: better now than after an hour of training.
    """
    uri = tracking_uri()
    if uri is None:
        return None, None
    with contextlib.closing(MlflowRest(uri)) as rest:
        rest.wait_until_healthy(START_PATIENCE_S)
        experiment = rest.experiment(os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT)
        run_id = rest.create_run(experiment, name, tags)
    return run_id, run_url(uri, experiment, run_id)


def experiment_note() -> str:
    """What to say of an experiment whose files cannot be written from here; empty where they can, or without MLflow."""
    uri = tracking_uri()
    if uri is None:
        return ""
    with contextlib.closing(MlflowRest(uri)) as rest:
        return rest.artifact_note(os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT)


def end_parent(run_id: str | None, succeeded: bool) -> None:
    """Mark the run as ended. A server that is away is only logged: the work is done."""
    uri = tracking_uri()
    if uri is None or run_id is None:
        return
    status = "FINISHED" if succeeded else "FAILED"
    try:
        with contextlib.closing(MlflowRest(uri)) as rest:
            rest.update_run(run_id, status, now_ms())
    except StageError as error:
        logger.warning("mlflow=unavailable run=%s not marked %s: %s", run_id, status, error)
