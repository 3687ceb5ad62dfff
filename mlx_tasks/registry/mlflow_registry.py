"""The model registry: log a bundle as an MLflow model without pickles, make a version of it once, name it by aliases.

MLflow is imported inside the functions: it takes seconds, and only the register stage and the server need it.
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
from typing import TYPE_CHECKING, Any

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.tracking.rest import MlflowRest

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

KEY_TAG = "mlx_tasks.key"
SCORES_TAG = "mlx_tasks.scores"
CONDITIONS_TAG = "mlx_tasks.conditions"
CHALLENGER, CHAMPION, SERVING = "challenger", "champion", "serving"

CODE = (
    "__init__.py",
    "config.py",
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
    created: bool = False

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
    """A server's model registry.  Every call raises UnavailableError where the server does not answer."""

    def __init__(self, uri: str) -> None:
        rest = MlflowRest(uri)
        with contextlib.closing(rest):
            rest.wait_until_healthy(10.0)
        self.uri = rest.uri
        # MLflow's own default is seven tries over minutes; whoever runs the stage tries again anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        self._client: MlflowClient = mlflow.MlflowClient(self.uri, self.uri)

    def register(self, name: str, key: str, bundle: Path, run_id: str, tags: Mapping[str, str]) -> Version:
        """The version of this bundle, made if none has this key: a retry after a crash at any point finds its own.

        The key is a tag of the logged model and of the version, each written in one transaction with what it names.
        """
        with self._answering():
            self._ensure_model(name)
            found = self.by_key(name, key)
            if found:
                return found
            source = self._logged(run_id, key) or self._log(bundle, run_id, key)
            made = self._client.create_model_version(
                name, f"models:/{source}", run_id, tags={**tags, KEY_TAG: key}, model_id=source
            )
            logger.info("model=%s version=%s run=%s", name, made.version, run_id)
            return Version(name, str(made.version), run_id, {**tags, KEY_TAG: key}, created=True)

    def by_key(self, name: str, key: str) -> Version | None:
        """The version with this key."""
        with self._answering():
            found = self._client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{key}'")
        return _version(found[0]) if found else None

    def by_alias(self, name: str, alias: str) -> Version | None:
        """The version an alias names, or None where there is no such model or alias."""
        from mlflow.exceptions import MlflowException

        with self._answering():
            try:
                return _version(self._client.get_model_version_by_alias(name, alias))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let an alias name a version."""
        with self._answering():
            self._client.set_registered_model_alias(name, alias, version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Let an alias name nothing."""
        with self._answering():
            self._client.delete_registered_model_alias(name, alias)

    def resolve(self, reference: str) -> Version:
        """The version of NAME@ALIAS or NAME/VERSION.  Raises: DataError where there is none."""
        from mlflow.exceptions import MlflowException

        name, at, alias = reference.partition("@")
        if at:
            found = self.by_alias(name, alias)
            if found is None:
                raise DataError(f"no version of model {name!r} has the alias {alias!r} at {self.uri}")
            return found
        name, slash, number = reference.partition("/")
        if not slash:
            raise DataError(f"a model is named NAME@ALIAS or NAME/VERSION, got {reference!r}")
        with self._answering():
            try:
                return _version(self._client.get_model_version(name, number))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise DataError(f"no version {number!r} of model {name!r} at {self.uri}") from None
                raise

    def download(self, version: Version, folder: Path) -> Path:
        """The version's bundle, brought to a folder under `folder`."""
        from mlflow.artifacts import download_artifacts

        with self._answering():
            local = Path(download_artifacts(artifact_uri=version.uri, dst_path=str(folder), tracking_uri=self.uri))
        bundles = [path.parent for path in local.rglob("sampler.json")]
        if len(bundles) != 1:
            raise DataError(
                f"{version.uri} holds {len(bundles)} bundles, expected one: was it registered by this chain?"
            )
        return bundles[0]

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name, description="Diffusion samplers made by optimize_diffusion.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _logged(self, run_id: str, key: str) -> str | None:
        """The id of a model that an attempt before this one logged whole."""
        experiment = self._client.get_run(run_id).info.experiment_id
        found = self._client.search_logged_models([experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'")
        return next((model.model_id for model in found if str(model.status).upper().endswith("READY")), None)

    def _log(self, bundle: Path, run_id: str, key: str) -> str:
        import mlflow.pyfunc
        import pandas as pd
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema

        signature = ModelSignature(
            Schema([ColSpec("long", "class_label"), ColSpec("long", "seed")]), Schema([ColSpec("binary", "png")])
        )
        # Without an active run MLflow puts the model into the process's experiment, whatever the run's is.
        mlflow.set_experiment(experiment_id=self._client.get_run(run_id).info.experiment_id)
        with tempfile.TemporaryDirectory() as folder:
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


def _version(found: Any) -> Version:
    return Version(found.name, str(found.version), found.run_id or None, dict(found.tags or {}))
