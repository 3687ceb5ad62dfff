"""MLflow: runs of the chain with their artifacts and the models that they logged and nobody registered."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from mlx_tasks.errors import DataError
from mlx_tasks.retention.plan import Area, Item
from mlx_tasks.retention.registry import Registered, pages
from mlx_tasks.retention.runs import DEAD_AFTER_S, KnownRun
from mlx_tasks.tracking.rest import MlflowRefused, MlflowRest
from mlx_tasks.workspace.paths import run_slug


def mlflow_area(
    rest: MlflowRest,
    tracked: list[dict[str, Any]],
    versions: list[Registered],
    runs: dict[str, KnownRun],
    before: float,
    cited: set[str],
    busy: str,
) -> Area:
    """Whole families: a DAG run's MLflow run and those of its stages stay or go together.

    cited: MLflow runs that runs which stay took results from. busy: why all stay, or empty.
    """
    area = Area("MLflow runs", note="deleted runs keep their rows in MLflow's database until `mlflow gc` on its server")
    registered = {one.run_id: one.uri for one in versions}
    models = {one.model_id for one in versions}
    now = time.time()
    families: dict[str, list[dict[str, Any]]] = {}
    for run in tracked:
        families.setdefault(run["parent"] or run["run_id"], []).append(run)
    for family in families.values():
        known = next((runs.get(run_slug(run["name"])) for run in family if run["name"]), None)
        held = next((registered[run["run_id"]] for run in family if run["run_id"] in registered), "")
        if held:
            why = f"registered ({held})"
        elif any(run["status"] == "RUNNING" and run["last"] > now - DEAD_AFTER_S for run in family):
            why = "at work"
        elif known and known.why:
            why = known.why
        elif any(run["run_id"] in cited for run in family):
            why = "needed by a run that stays"
        else:
            why = "young" if max(run["last"] for run in family) > before else busy
        for run in sorted(family, key=lambda one: one["name"] is not None):  # the parent last: it names the family
            area.sort(Item(run["run_id"], 0, _MlflowRun(rest, run, models)), why)
    return area


class _MlflowRun:
    """Its models, then its files, then the run: what was left by a killed clean is found by the run."""

    def __init__(self, rest: MlflowRest, run: dict[str, Any], registered: set[str]) -> None:
        self._rest, self._run, self._registered = rest, run, registered

    def __call__(self) -> None:
        experiment = self._rest.run(self._run["run_id"])["info"]["experiment_id"]
        body = {"experiment_ids": [experiment], "filter": f"source_run_id = '{self._run['run_id']}'"}
        models = [one["info"] for one in pages(self._rest, "POST", "logged-models/search", body, "models")]
        if any(model["model_id"] in self._registered for model in models):
            return
        for model in models:
            self._delete_files(model["artifact_uri"])
            self._rest.call("DELETE", f"logged-models/{model['model_id']}", {})
        self._delete_files(self._run["artifact_uri"])
        self._rest.call("POST", "runs/delete", {"run_id": self._run["run_id"]})

    def _delete_files(self, artifact_uri: str) -> None:
        with contextlib.suppress(MlflowRefused, DataError):  # there are none, or MLflow does not keep them itself
            self._rest.delete_artifacts(artifact_uri)
