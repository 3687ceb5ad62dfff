"""What a run left, wherever it is kept: its workspace, its commit through DVC, or MLflow."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from mlx_tasks.errors import DataError, StageError
from mlx_tasks.values import schema_of, typed
from mlx_tasks.workspace.paths import Places, run_slug

SCORES, SUMMARY, GRIDS = "work/scores/scores.json", "work/dataset/summary.json", "work/scores/grids"
Read = Callable[[str], bytes | None]
"""File of the workspace (relative name) -> its bytes, or None where it is not kept."""


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: as the caller gave it.
        source: where it was found, in words.
        params: dotted key -> value, of params.yaml.
        scores: scores.json.
        dataset: counts of the dataset, where they are kept.
        read: any other file of the run.
    """

    name: str
    source: str
    params: dict[str, Any]
    scores: dict[str, Any]
    dataset: dict[str, Any] = field(default_factory=dict)
    read: Read = field(default=lambda _: None, repr=False)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Candidate -> its row."""
        return {row["candidate"]: row for row in self.scores["rows"]}

    @property
    def winner(self) -> dict[str, Any]:
        """The winner's row."""
        return self.rows[self.scores["winner"]["candidate"]]

    @property
    def teacher(self) -> dict[str, Any] | None:
        """The best teacher sampler's row."""
        return self.rows.get(self.scores.get("teacher") or "")

    def picture(self, candidate: str) -> bytes | None:
        """PNG of a candidate's sample grid."""
        return self.read(f"{GRIDS}/{candidate}.png")


def load_record(reference: str, places: Places) -> RunRecord:
    """The run behind a workspace folder, a run id or slug, a branch or commit, NAME/VERSION, or an MLflow run id.

    Looked for in that order.  Raises: DataError naming where it was looked for.
    """
    tried = []
    for finder in (_from_folder, _from_workspace, _from_git, _from_registry, _from_mlflow):
        record, why = finder(reference, places)
        if record is not None:
            return record
        tried.append(why)
    raise DataError(f"no run {reference!r}: " + "; ".join(why for why in tried if why))


def folder_record(name: str, folder: Path) -> RunRecord:
    """The record of a workspace's folder.  Raises: DataError where it has no scores."""

    def read(file: str) -> bytes | None:
        path = folder / file
        return path.read_bytes() if path.is_file() else None

    return make_record(name, f"workspace {folder.name}", read)


def make_record(name: str, source: str, read: Read) -> RunRecord:
    """The record of what `read` gives.  Raises: DataError where there are no scores, or of a shape that is unknown."""
    scores = read(SCORES)
    if scores is None:
        raise DataError(f"{source} has no {SCORES}: the run did not get to its evaluation")
    params, summary = read("params.yaml"), read(SUMMARY)
    return RunRecord(
        name,
        source,
        flat(yaml.safe_load(params)) if params else {},
        _checked(json.loads(scores), source),
        json.loads(summary) if summary else {},
        read,
    )


def _checked(scores: Any, source: str) -> dict[str, Any]:
    """scores.json as it is, if it holds all that a comparison reads."""
    try:
        candidates = {row["candidate"]: row for row in scores["rows"] if row["kind"] != "reference"}
        for row in candidates.values():
            float(row["metrics"]["frechet_distance"]["value"]), row["refused"], row["latency_ms"], row["nfe"]
        candidates[scores["winner"]["candidate"]], scores["winner"]["rule"], scores["setup"]["classes"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: its {SCORES} lacks {error} or has another shape; it was measured by a version of this project "
            "too far from this one. Evaluate its model again"
        ) from None
    return scores


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


Found = tuple[RunRecord | None, str]


def _from_folder(reference: str, places: Places) -> Found:
    folder = Path(reference).expanduser()
    if not (folder / SCORES).is_file():
        return None, ""
    return folder_record(reference, folder), ""


def _from_workspace(reference: str, places: Places) -> Found:
    for slug in (reference, run_slug(reference)):
        folder = places.workspaces / slug
        if (folder / SCORES).is_file():
            return folder_record(reference, folder), ""
    return None, f"no workspace of that name in {places.workspaces}"


def _from_git(reference: str, places: Places) -> Found:
    """Through DVC: the files of a commit, from the cache or the remote."""
    from mlx_tasks.workspace.git import git

    commit = None
    for name in (reference, f"runs/{reference}"):
        with contextlib.suppress(StageError):
            commit = git(places.repository, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
            break
    if commit is None:
        return None, "no branch or commit of that name"

    def read(name: str) -> bytes | None:
        import dvc.api
        from dvc.exceptions import DvcException

        config = {"cache": {"dir": str(places.dvc_cache)}} if places.dvc_cache.is_dir() else None
        if Path(places.dvc_remote).is_dir():
            remote = {"remote": {"run-remote": {"url": places.dvc_remote}}, "core": {"remote": "run-remote"}}
            config = {**(config or {}), **remote}
        try:
            return dvc.api.read(name, repo=str(places.repository), rev=commit, mode="rb", config=config)
        except (DvcException, OSError, KeyError):
            return None

    if read(SCORES) is None:
        return None, f"commit {commit[:12]} has no scores that DVC can find in its cache or remote"
    return make_record(reference, f"commit {commit[:12]} through DVC", read), ""


def _from_registry(reference: str, places: Places) -> Found:
    from mlx_tasks.tracking.rest import tracking_uri

    uri = tracking_uri()
    if uri is None or not ("/" in reference or "@" in reference):
        return None, ""
    from mlx_tasks.registry.mlflow_registry import Registry

    try:
        version = Registry(uri).resolve(reference)
    except StageError as error:
        return None, str(error)
    return _from_mlflow(str(version.run_id), places)


def _from_mlflow(reference: str, places: Places) -> Found:
    """Scores that a run, its parent or a sibling logged; params from what the run recorded."""
    from mlx_tasks.tracking.rest import tracking_uri

    uri = tracking_uri()
    if uri is None:
        return None, "MLFLOW_TRACKING_URI is not set, so no MLflow run was looked for"
    try:
        return mlflow_record(reference, reference, uri), ""
    except DataError as error:
        return None, str(error)


def mlflow_record(name: str, run_id: str, uri: str) -> RunRecord:
    """The record of an MLflow run, named `name`: scores that it, or a sibling under its parent, logged.

    Params are those the run recorded; files are fetched when they are asked for.
    Raises: DataError where there is no such run, or no scores with it; UnavailableError where the server is away.
    """
    from mlx_tasks.tracking.rest import MlflowRefused, MlflowRest

    with contextlib.closing(MlflowRest(uri)) as rest:
        try:
            run = rest.run(run_id)
        except MlflowRefused as refused:
            raise DataError(f"no MLflow run {run_id!r} at {uri} ({refused.code})") from None
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        body = {
            "experiment_ids": [run["info"]["experiment_id"]],
            "filter": f"tags.`mlflow.parentRunId` = '{tags.get('mlflow.parentRunId', run_id)}'",
            "max_results": 100,
        }
        for one in chain([run], rest.rows("POST", "runs/search", "runs", body)):
            read = _artifact_reader(uri, one["info"]["artifact_uri"])
            if read(SCORES) is not None:
                record = make_record(name, f"MLflow run {one['info']['run_id']}", read)
                params = {p["key"]: _param(p["key"], p["value"]) for p in one["data"].get("params", [])}
                return replace(record, params=params)
    raise DataError(f"MLflow run {run_id!r} and its siblings logged no scores")


def _param(key: str, text: str) -> Any:
    """A logged param as params.yaml would have it; its text where the tree has no such key any more."""
    try:
        return typed(key, text, schema_of(key))
    except DataError:
        return text


def _artifact_reader(uri: str, artifact_uri: str) -> Read:
    """Files of the scores folder that a run logged; nothing else of a workspace is there."""
    from mlx_tasks.tracking.rest import MlflowRest

    def read(name: str) -> bytes | None:
        if not name.startswith("work/scores/"):
            return None
        with contextlib.closing(MlflowRest(uri)) as rest:
            return rest.get_artifact(artifact_uri, name.removeprefix("work/"))

    return read
