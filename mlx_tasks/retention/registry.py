"""What MLflow says must stay: every registered version, whatever its alias, and the runs that are at work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_tasks.errors import DataError
from mlx_tasks.tracking.rest import DEFAULT_EXPERIMENT, EXPERIMENT_VARIABLE, URI_VARIABLE, MlflowRest, tracking_uri

RUN_TAG, PARENT_TAG = "ado.run_id", "mlflow.parentRunId"


@dataclass(frozen=True)
class Registered:
    """One registered version, as far as it needs things.

    Attributes:
        uri: for people.
        name, version: in the registry.
        run_id, model_id: its MLflow run and logged model.
        slug, commit: its run's; empty where it was not registered by this chain.
    """

    name: str
    version: str
    run_id: str
    model_id: str
    slug: str
    commit: str

    @property
    def uri(self) -> str:
        """As people write it."""
        return f"{self.name}/{self.version}"


def connect() -> MlflowRest:
    """The registry.  Raises: DataError where none is named; UnavailableError where it does not answer."""
    uri = tracking_uri()
    if uri is None:
        raise DataError(
            f"{URI_VARIABLE} must name the registry: what a registered version needs is never cleaned, and only the "
            "registry knows (`make up` starts that of this checkout)"
        )
    rest = MlflowRest(uri)
    rest.wait_until_healthy(10.0)
    return rest


def registered(rest: MlflowRest) -> list[Registered]:
    """Every version of every model.  Raises: UnavailableError."""
    found = []
    for model in pages(rest, "GET", "registered-models/search", {"max_results": 100}, "registered_models"):
        body = {"filter": f"name = '{model['name']}'", "max_results": 1000}
        for one in pages(rest, "GET", "model-versions/search", body, "model_versions"):
            tags = {tag["key"]: tag["value"] for tag in one.get("tags", [])}
            source = str(one.get("source", ""))
            model_id = one.get("model_id") or (source.removeprefix("models:/") if "models:/m-" in source else "")
            slug, commit = tags.get("mlx_tasks.run", ""), tags.get("mlx_tasks.commit", "")
            run_id = one.get("run_id") or ""
            found.append(Registered(one["name"], str(one["version"]), run_id, model_id, slug, commit))
    return found


def mlflow_runs(rest: MlflowRest) -> list[dict[str, Any]]:
    """The chain's MLflow runs in its experiment, but deleted ones: {run_id, parent, name, status, last, artifact_uri}.

    last: when it ended, or began (s since 1970).
    """
    experiment = os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT
    body = {"max_results": 1000, "filter": f"name = '{experiment}'"}
    ids = [one["experiment_id"] for one in pages(rest, "POST", "experiments/search", body, "experiments")]
    body = {"experiment_ids": ids, "max_results": 1000}
    told = []
    for run in pages(rest, "POST", "runs/search", body, "runs") if ids else ():
        info, tags = run["info"], {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        name, parent = tags.get(RUN_TAG), tags.get(PARENT_TAG)
        if name or parent:
            last = float(info.get("end_time") or info.get("start_time") or 0) / 1000
            told.append(
                {
                    "run_id": info["run_id"],
                    "parent": parent,
                    "name": name,
                    "status": info.get("status"),
                    "last": last,
                    "artifact_uri": info.get("artifact_uri", ""),
                }
            )
    ours = {run["run_id"] for run in told if run["name"]}
    return [run for run in told if run["name"] or run["parent"] in ours]


def pages(rest: MlflowRest, method: str, path: str, body: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """All entries of a search, page by page."""
    token = None
    while True:
        answer = rest.call(method, path, {**body, **({"page_token": token} if token else {})})
        yield from answer.get(key, [])
        token = answer.get("next_page_token")
        if not token:
            return
