"""The model registry: log a bundle as an MLflow model without pickles, make a version of it once, name it by aliases.

MLflow itself is imported by `Registry.register` alone: it takes seconds and 250 MB, and a server needs none of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.tracking.rest import ELSEWHERE, ArtifactsElsewhere, MlflowRefused, MlflowRest, is_proxied

logger = logging.getLogger(__name__)

KEY_TAG = "mlx_tasks.key"
SCORES_TAG = "mlx_tasks.scores"
CONDITIONS_TAG = "mlx_tasks.conditions"
DIGEST_TAG = "mlx_tasks.bundle_digest"
CONTENT_TAG = "mlx_tasks.content_digest"
"""Over every file of the bundle; DIGEST_TAG over those that make its images."""
PAGE = 1000
"""Versions asked for at once; there may be more pages."""

CODE = (
    "__init__.py",
    "config_base.py",
    "config_training.py",
    "errors.py",
    "files.py",
    "hardware.py",
    "data/__init__.py",
    "data/loader.py",
    "diffusion",
    "models",
    "samplers",
    "registry/__init__.py",
    "registry/draw.py",
    "registry/png.py",
    "registry/pyfunc.py",
)
"""What of this package a model takes along, so that it loads where the package is not installed."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    version: str
    run_id: str | None
    tags: dict[str, str]
    model_id: str | None = None

    @property
    def uri(self) -> str:
        """As `mlflow.pyfunc.load_model` takes it."""
        return f"models:/{self.name}/{self.version}"

    def json_tag(self, tag: str) -> Any:
        """A tag's JSON value, or None."""
        try:
            return json.loads(self.tags[tag])
        except (KeyError, ValueError):
            return None


class Registry:
    """A server's model registry.  Every call raises UnavailableError where the server does not answer.

    It speaks MLflow's REST API; only to make a new logged model it imports MLflow.
    """

    def __init__(self, uri: str, patience_s: float = 10.0) -> None:
        """patience_s: how long a server that is starting may take to answer."""
        self._rest = MlflowRest(uri)
        self._rest.wait_until_healthy(patience_s)
        self.uri = self._rest.uri

    def register(self, name: str, key: str, bundle: Path, run_id: str, tags: Mapping[str, str]) -> Version:
        """The version of this bundle, made if none has this key: a retry after a crash at any point finds its own.

        The key is a tag of the logged model and of the version, each written in one transaction with what it names.
        """
        self._ensure_model(name)
        found = self.by_key(name, key)
        if found:
            return found
        model_id = self._logged(run_id, key) or self._log(bundle, run_id, key)
        made = self._create_version(name, model_id, run_id, {**tags, KEY_TAG: key})
        logger.info("model=%s version=%s run=%s", name, made.version, run_id)
        return made

    def versions(self, name: str, key: str | None = None) -> list[Version]:
        """Every version of a model, or those with this key."""
        matching = f"name = '{name}'" + (f" and tags.`{KEY_TAG}` = '{key}'" if key else "")
        body = {"filter": matching, "max_results": PAGE}
        return [_version(one) for one in self._rest.rows("GET", "model-versions/search", "model_versions", body)]

    def by_key(self, name: str, key: str) -> Version | None:
        """The version with this key."""
        return next(iter(self.versions(name, key)), None)

    def by_alias(self, name: str, alias: str) -> Version | None:
        """The version an alias names, or None where there is no such model or alias."""
        try:
            answer = self._rest.call("GET", "registered-models/alias", {"name": name, "alias": alias})
        except MlflowRefused as refused:
            if self._is_missing(name, refused):
                return None
            raise
        return _version(answer["model_version"])

    def aliases(self, name: str) -> dict[str, str]:
        """{alias: version} of a model.  Raises: DataError where there is no such model."""
        return {one["alias"]: str(one["version"]) for one in self._model(name).get("aliases", [])}

    def run_param(self, run_id: str, name: str) -> str | None:
        """A parameter of the run behind a version, or None where there is no such run or parameter."""
        try:
            params = self._rest.run(run_id)["data"].get("params", [])
        except MlflowRefused:
            return None
        return {one["key"]: one["value"] for one in params}.get(name)

    def model_tag(self, name: str, tag: str) -> str | None:
        """A tag of the model itself, or None."""
        return {one["key"]: one["value"] for one in self._model(name).get("tags", [])}.get(tag)

    def set_model_tag(self, name: str, tag: str, value: str) -> None:
        """Put a tag on the model itself."""
        self._rest.call("POST", "registered-models/set-tag", {"name": name, "key": tag, "value": value})

    def _model(self, name: str) -> dict[str, Any]:
        try:
            return self._rest.call("GET", "registered-models/get", {"name": name})["registered_model"]
        except MlflowRefused as refused:
            if refused.code == "RESOURCE_DOES_NOT_EXIST":
                raise DataError(f"no model {name!r} at {self.uri}") from None
            raise

    def _is_missing(self, name: str, refused: MlflowRefused) -> bool:
        """Whether an alias or version was refused since it is not there.

        A server with logins forbids both for a model that is not there, and says so of the model itself.
        """
        if refused.code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return True
        if refused.code != "HTTP_403":
            return False
        try:
            self._rest.call("GET", "registered-models/get", {"name": name})
        except MlflowRefused as again:
            return again.code == "RESOURCE_DOES_NOT_EXIST"
        return False

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let an alias name a version."""
        self._rest.call("POST", "registered-models/alias", {"name": name, "alias": alias, "version": version})

    def set_version_tag(self, name: str, version: str, tag: str, value: str) -> None:
        """Put a tag on a version.  MLflow refuses one of two that write a new one at once; a second try works."""
        body = {"name": name, "version": version, "key": tag, "value": value}
        try:
            self._rest.call("POST", "model-versions/set-tag", body)
        except MlflowRefused as refused:
            if refused.code != "BAD_REQUEST":
                raise
            self._rest.call("POST", "model-versions/set-tag", body)

    def claim(self, run_id: str, name: str, value: str) -> str:
        """The value that a parameter of a run has after the first one to write it: ours, or an earlier one.

        Where the run is gone nobody can claim, and ours is given.
        """
        try:
            self._rest.call("POST", "runs/log-parameter", {"run_id": run_id, "key": name, "value": value})
        except MlflowRefused as refused:
            logger.info("run=%s parameter=%s taken=true reason='%s'", run_id, name, refused)
        return self.run_param(run_id, name) or value

    def delete_alias(self, name: str, alias: str) -> None:
        """Let an alias name nothing."""
        self._rest.call("DELETE", "registered-models/alias", {"name": name, "alias": alias})

    def resolve(self, reference: str) -> Version:
        """The version of NAME@ALIAS or NAME/VERSION.  Raises: DataError where there is none."""
        name, at, alias = reference.partition("@")
        if at:
            found = self.by_alias(name, alias)
            if found is None:
                raise DataError(f"no version of model {name!r} has the alias {alias!r} at {self.uri}")
            return found
        name, slash, number = reference.partition("/")
        if not slash:
            raise DataError(f"a model is named NAME@ALIAS or NAME/VERSION, got {reference!r}")
        try:
            return _version(
                self._rest.call("GET", "model-versions/get", {"name": name, "version": number})["model_version"]
            )
        except MlflowRefused as refused:
            if self._is_missing(name, refused):
                raise DataError(f"no version {number!r} of model {name!r} at {self.uri}") from None
            raise

    def download(self, version: Version, folder: Path) -> Path:
        """The version's bundle, brought to a folder under `folder`.

        Raises: DataError where it holds none, or another than was registered.
        """
        if version.model_id is None:
            raise DataError(f"{version.uri} names no logged model: was it registered by this chain?")
        info = self._rest.call("GET", f"logged-models/{version.model_id}", {})["model"]["info"]
        self._rest.get_artifacts(info["artifact_uri"], folder)
        bundles = [path.parent for path in folder.rglob("sampler.json")]
        if len(bundles) != 1:
            raise DataError(
                f"{version.uri} holds {len(bundles)} bundles, expected one: was it registered by this chain?"
            )
        check_registered(version, bundles[0])
        return bundles[0]

    def logged_models(self, run_id: str, key: str | None = None) -> list[str]:
        """Ids of the models that a run has logged whole, or of those with this key."""
        experiment = self._rest.run(run_id)["info"]["experiment_id"]
        matching = f"source_run_id = '{run_id}'" + (f" and tags.`{KEY_TAG}` = '{key}'" if key else "")
        body = {"experiment_ids": [experiment], "filter": matching}
        models = self._rest.rows("POST", "logged-models/search", "models", body)
        return [model["info"]["model_id"] for model in models if str(model["info"]["status"]).endswith("READY")]

    def _ensure_model(self, name: str) -> None:
        body = {"name": name, "description": "Diffusion samplers made by optimize_diffusion."}
        try:
            self._rest.call("POST", "registered-models/create", body)
        except MlflowRefused as refused:
            if refused.code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _logged(self, run_id: str, key: str) -> str | None:
        """The id of a model that an attempt before this one logged whole."""
        return next(iter(self.logged_models(run_id, key)), None)

    def _create_version(self, name: str, model_id: str, run_id: str, tags: dict[str, str]) -> Version:
        body = {
            "name": name,
            "source": f"models:/{model_id}",
            "run_id": run_id,
            "model_id": model_id,
            "tags": [{"key": tag, "value": value} for tag, value in tags.items()],
        }
        return _version(self._rest.call("POST", "model-versions/create", body)["model_version"])

    def _log(self, bundle: Path, run_id: str, key: str) -> str:
        """The id of a fresh logged model.  Raises: ArtifactsElsewhere where its files could not be fetched again."""
        info = self._rest.run(run_id)["info"]
        if not is_proxied(str(info.get("artifact_uri"))):
            raise ArtifactsElsewhere(f"MLflow at {self.uri} keeps files at {info.get('artifact_uri')}: {ELSEWHERE}")
        # MLflow's own default is seven tries over minutes; whoever runs the stage tries again anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import mlflow.pyfunc
        import pandas as pd
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema

        signature = ModelSignature(
            Schema([ColSpec("long", "class_label"), ColSpec("long", "seed")]), Schema([ColSpec("binary", "png")])
        )
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        # Without an active run MLflow puts the model into the process's experiment, whatever the run's is.
        mlflow.set_experiment(experiment_id=info["experiment_id"])
        with self._answering(), tempfile.TemporaryDirectory() as folder:
            logged = Model.log(
                None,
                mlflow.pyfunc,
                name="sampler",
                run_id=run_id,
                tags={KEY_TAG: key},
                loader_module="mlx_tasks.registry.pyfunc",
                data_path=str(bundle),
                code_paths=[str(_own_code(Path(folder)))],
                signature=signature,
                input_example=pd.DataFrame({"class_label": [0, 0], "seed": [0, 1]}),
                pip_requirements=requirements(),
            )
        return str(logged.model_id)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """MLflow's and its HTTP library's ways of saying "not there" as UnavailableError."""
        import requests
        from mlflow.exceptions import MlflowException

        try:
            yield
        except requests.RequestException as error:
            raise UnavailableError(f"MLflow at {self.uri} does not answer: {error}") from error
        except MlflowException as error:
            text = str(error)
            if "API request to" in text or error.error_code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR"):
                raise UnavailableError(f"MLflow at {self.uri} does not answer: {text:.300}") from error
            raise


def check_registered(version: Version, folder: Path) -> None:
    """Raises: DataError unless a folder's files are those of its digests, and these are the registered ones."""
    from mlx_tasks.models.digests import bundle_digest, check_digests, content_digest

    check_digests(folder)
    for tag, found in ((DIGEST_TAG, bundle_digest(folder)), (CONTENT_TAG, content_digest(folder))):
        told = version.tags.get(tag, "")
        if told and found != told:
            raise DataError(
                f"{version.uri} was registered with {tag.rpartition('.')[2]} {told[:12]}, what came has "
                f"{found[:12] or 'none'}: its artifacts were changed"
            )


def requirements() -> list[str]:
    """What a fresh environment needs to load the model, at the versions it was made with."""
    lines = [
        f"mlx=={installed('mlx')}; sys_platform == 'darwin'",
        f"mlx[cpu]=={installed('mlx')}; sys_platform == 'linux'",
    ]
    return [
        *lines,
        *(
            f"{name}=={installed(name)}"
            for name in ("mlflow", "numpy", "pandas", "pillow", "psutil", "pydantic", "pyyaml", "safetensors")
        ),
    ]


def _own_code(folder: Path) -> Path:
    """A copy of CODE as a package under `folder`."""
    package = Path(__file__).resolve().parent.parent
    copy = folder / package.name
    for name in CODE:
        source, target = package / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    return copy


def _version(found: dict[str, Any]) -> Version:
    """A version from MLflow's JSON."""
    source = str(found.get("source", ""))
    model_id = found.get("model_id") or (source.removeprefix("models:/") if source.startswith("models:/m-") else None)
    tags = {tag["key"]: tag["value"] for tag in found.get("tags", [])}
    return Version(found["name"], str(found["version"]), found.get("run_id") or None, tags, model_id)
