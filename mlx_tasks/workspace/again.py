"""Begin the chain again at a stage: code, params and all results before it are those of a registered version's run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError
from mlx_tasks.params import load_config
from mlx_tasks.workspace import git
from mlx_tasks.workspace.paths import Places

if TYPE_CHECKING:
    from mlx_tasks.registry.mlflow_registry import Version

STAGES = ("tune", "distill", "train")
"""Where a run may begin again; before `train` there is only the data, and new data is a run of its own."""


@dataclass(frozen=True)
class Lineage:
    """A registered version's run, as far as another run can begin from it.

    Attributes:
        uri: the version's, for people.
        commit: its run's, with code, params.yaml and dvc.lock.
        config: its params, begun again from the stage asked for.
    """

    uri: str
    commit: str
    config: Config


def lineage(places: Places, model: str, stage: str) -> Lineage:
    """What a run that begins again at `stage` takes over from the version `model` (NAME@ALIAS or NAME/VERSION).

    Raises: DataError where there is no such version or stage, or its commit is nowhere; UnavailableError.
    """
    from mlx_tasks.registry.mlflow_registry import Registry
    from mlx_tasks.tracking.rest import URI_VARIABLE, tracking_uri

    if stage not in STAGES:
        raise DataError(f"start_from: one of {', '.join(STAGES)}, or empty for the whole chain, got {stage!r}")
    uri = tracking_uri()
    if uri is None:
        raise DataError(f"start_from: {stage} begins from {model}, for which {URI_VARIABLE} must name the registry")
    version = Registry(uri).resolve(model)
    commit = fetch_commit(places, version)
    config = _params(places.repository, commit)
    return Lineage(version.uri, commit, config.model_copy(update={"redo": config.redo.again_from(stage)}))


def fetch_commit(places: Places, version: Version) -> str:
    """The commit that a registered version names, brought here with its run's branch if it is elsewhere.

    Raises: DataError where it is nowhere.
    """
    commit, branch = version.tags.get("mlx_tasks.commit", ""), f"runs/{version.tags.get('mlx_tasks.run', '')}"
    repository = places.repository
    if not git.has_commit(repository, commit or "none") and places.git_remote:
        git.fetch(repository, places.git_remote, branch)
    if not git.has_commit(repository, commit or "none"):
        raise DataError(
            f"{version.uri} names the commit {commit[:12] or 'none'}, which is not in {repository}: start the whole "
            "chain, or set ADO_GIT_REMOTE to where the run's branch is"
        )
    return commit


def with_alerts(form: dict[str, Any]) -> dict[str, Any]:
    """A run's form as its alerts change it: where to begin, from which version, and why.

    An alert holds metric, value, limit, message and suggestion; `begin_with` where it knows the version it is about;
    and `status`, "repeated" where an earlier run was started for it.
    Raises: DataError for alerts of another shape.
    """
    from mlx_tasks.monitoring.alerts import furthest

    given = form.get("alerts") or []
    if not all(isinstance(one, dict) and {"metric", "message"} <= set(one) for one in given):
        raise DataError(f"alerts: each must hold metric, message and suggestion, got {given!r:.200}")
    alerts = [one for one in given if one.get("status", "new") == "new"]
    if not alerts:
        return form
    start = furthest([one.get("suggestion", "") for one in alerts])
    named = [one["begin_with"] for one in alerts if one.get("begin_with")]
    return {
        **form,
        "start_from": start if start in STAGES else "",
        "begin_with": form.get("begin_with") or (named[-1] if named else None),
        "reason": "; ".join(filter(None, [form.get("reason"), *map(_told, alerts)]))[:2000],
    }


def _told(alert: dict[str, Any]) -> str:
    value, limit = (f"{v:.4g}" if isinstance(v := alert.get(key), (int, float)) else "" for key in ("value", "limit"))
    return f"{alert['metric']} {value}".strip() + (f" (limit {limit})" if limit else "") + f": {alert['message']}"


def _params(repository: Path, commit: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        text = git.git(repository, "show", f"{commit}:params.yaml")
        (Path(folder) / "params.yaml").write_text(text + "\n", encoding="utf-8")
        return load_config(Path(folder))
