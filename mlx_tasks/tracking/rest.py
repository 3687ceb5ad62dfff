"""The few MLflow REST calls that a stage needs, without importing MLflow (5 to 9 s and some 250 MB in every stage).

Paths and fields are those of MLflow's REST API 2.0; artifacts go through the server's artifact proxy (its default).
Every call either works, or raises `UnavailableError` (ask again later) or `MlflowRefused` (asking again is no help).
"""

from __future__ import annotations

import math
import mimetypes
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from mlx_tasks.errors import DataError, StageError, UnavailableError
from mlx_tasks.trust import authorities

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
DEFAULT_EXPERIMENT = "optimize_diffusion"

ELSEWHERE = (
    "the experiment was made with a root that does not go through the server. Set "
    f"{EXPERIMENT_VARIABLE} to a name that is not taken: a new experiment keeps its files with the server (started "
    "with --serve-artifacts, its default, and without --default-artifact-root)"
)
"""Why files cannot be kept, and the remedy."""

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class MlflowRefused(StageError):
    """The server answered and said no: a bad name, a changed parameter, a run that is gone.

    Attributes:
        code: MLflow's own error code, for example RESOURCE_DOES_NOT_EXIST.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class ArtifactsElsewhere(DataError):
    """A run's files are kept where only the server, or a client with keys of its own, can write."""


class MlflowRest:
    """A connection to one tracking server; not shared between threads."""

    def __init__(self, uri: str, timeout_s: float = 20.0) -> None:
        import httpx

        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(
                f"{URI_VARIABLE} must be the http(s) address of an MLflow server, got {uri!r}: start one with "
                "`mlflow server --backend-store-uri sqlite:///mlflow.db` and give its address"
            )
        self.uri = uri.rstrip("/")
        auth = None
        headers = {}
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        elif user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        self._http = httpx.Client(
            timeout=timeout_s,
            auth=auth,
            headers=headers,
            trust_env=parts.hostname not in _LOOPBACK,
            verify=authorities(),
        )

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def healthy(self) -> bool:
        """Whether the server answers its health check now."""
        import httpx

        try:
            return self._http.get(f"{self.uri}/health", timeout=3.0).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_healthy(self, patience_s: float) -> None:
        """Return once the server answers its health check.  Raises: UnavailableError after `patience_s` seconds."""
        deadline = time.monotonic() + patience_s
        while True:
            if self.healthy():
                return
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"MLflow at {self.uri} did not answer /health within {patience_s:g} s: start it (`make up`), "
                    f"correct {URI_VARIABLE}, or unset {URI_VARIABLE} to keep the records on disk only"
                )
            time.sleep(0.3)

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, made if there is none."""
        try:
            found = self.call("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]
        except MlflowRefused as refused:
            if refused.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            try:
                return self.call("POST", "experiments/create", {"name": name})["experiment_id"]
            except MlflowRefused as second:  # another stage made it between the two calls
                if second.code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.call("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]
        if found.get("lifecycle_stage") == "deleted":
            raise DataError(
                f"MLflow's experiment {name!r} is deleted: restore it, or set {EXPERIMENT_VARIABLE} to another name"
            )
        return found["experiment_id"]

    def artifact_note(self, name: str) -> str:
        """What to say where an experiment's files cannot be written through the server; empty where they can."""
        found = self.call("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]
        root = str(found.get("artifact_location", ""))
        if is_proxied(root):
            return ""
        return (
            f"MLflow's experiment {name!r} keeps its files at {root}, where this machine cannot put any: metrics, "
            "params and tags are recorded, images and files wait on disk, and no model can be registered from it. "
            f"{ELSEWHERE[0].upper()}{ELSEWHERE[1:]}; then `mlx-tasks ship-records` brings what waits"
        )

    def create_run(self, experiment_id: str, name: str, tags: dict[str, str], start_ms: int | None = None) -> str:
        """The id of a new run."""
        body = {
            "experiment_id": experiment_id,
            "run_name": name,
            "start_time": start_ms or now_ms(),
            "tags": [{"key": key, "value": str(value)[:8000]} for key, value in tags.items()],
        }
        return self.call("POST", "runs/create", body)["run"]["info"]["run_id"]

    def run(self, run_id: str) -> dict[str, Any]:
        """A run as MLflow tells it: {"info": ..., "data": ...}."""
        return self.call("GET", "runs/get", {"run_id": run_id})["run"]

    def run_is_active(self, run_id: str) -> bool:
        """Whether the run exists and is not deleted."""
        try:
            return self.run(run_id)["info"].get("lifecycle_stage", "active") == "active"
        except MlflowRefused as refused:
            if refused.code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        """The id of the newest run whose tag has this value."""
        body = {"experiment_ids": [experiment_id], "filter": f"tags.`{tag}` = '{value}'", "max_results": 1}
        runs = self.call("POST", "runs/search", body).get("runs", [])
        return runs[0]["info"]["run_id"] if runs else None

    def update_run(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Set a run's status: RUNNING, FINISHED, FAILED or KILLED."""
        body: dict[str, Any] = {"run_id": run_id, "status": status}
        if end_ms is not None:
            body["end_time"] = end_ms
        self.call("POST", "runs/update", body)

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[tuple[str, float | str, int, int]] = (),
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Record at most 1000 metrics (name, value, time in ms, step), 100 params and 100 tags in one transaction.

        Sending the same metric again is a no-op: MLflow's key is (run, name, time, step, value).
        """
        body = {
            "run_id": run_id,
            "metrics": [
                {"key": name, "value": json_number(value), "timestamp": when, "step": step}
                for name, value, when, step in metrics
            ],
            "params": [{"key": key[:250], "value": value[:6000]} for key, value in (params or {}).items()],
            "tags": [{"key": key[:250], "value": value[:8000]} for key, value in (tags or {}).items()],
        }
        self.call("POST", "runs/log-batch", body)

    def put_artifact(self, artifact_uri: str, name: str, path: Path) -> None:
        """Store a file under a run's artifacts.  `artifact_uri`: the run's own; `name`: where under it, with `/`."""
        url = f"{self._artifacts}/{quote(f'{self._inside(artifact_uri)}/{name}')}"
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        with path.open("rb") as file:
            self._send("PUT", url, content=file, headers={"Content-Type": kind})

    def get_artifacts(self, artifact_uri: str, folder: Path) -> None:
        """Bring every file under an artifact address to `folder`.  Raises: DataError for a name that leaves it."""
        inside = self._inside(artifact_uri)
        waiting = [""]
        while waiting:
            place = waiting.pop()
            listed = self._send("GET", self._artifacts, params={"path": f"{inside}/{place}".rstrip("/")}).json()
            for found in listed.get("files", []):
                name = f"{place}/{found['path']}".lstrip("/")
                target = folder / name
                if not target.resolve().is_relative_to(folder.resolve()):
                    raise DataError(f"MLflow at {self.uri} lists the artifact {name!r}, outside its folder")
                if found.get("is_dir"):
                    waiting.append(name)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(self._send("GET", f"{self._artifacts}/{quote(f'{inside}/{name}')}").content)

    def delete_artifacts(self, artifact_uri: str) -> None:
        """Remove every file under an artifact address."""
        self._send("DELETE", f"{self._artifacts}/{quote(self._inside(artifact_uri))}")

    def get_artifact(self, artifact_uri: str, name: str) -> bytes | None:
        """One file under an artifact address, or None where there is none of that name."""
        url = f"{self._artifacts}/{quote(f'{self._inside(artifact_uri)}/{name}')}"
        try:
            return self._send("GET", url).content
        except MlflowRefused as refused:
            if refused.code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "HTTP_404"):
                return None
            raise

    @property
    def _artifacts(self) -> str:
        return f"{self.uri}/api/2.0/mlflow-artifacts/artifacts"

    def _inside(self, artifact_uri: str) -> str:
        if not is_proxied(artifact_uri):
            raise ArtifactsElsewhere(f"MLflow at {self.uri} keeps these files at {artifact_uri}: {ELSEWHERE}")
        return urlsplit(artifact_uri).path.strip("/")

    def rows(self, method: str, path: str, key: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What a search finds, page by page until its end; `body` may say how many rows a page holds."""
        asked = dict(body)
        while True:
            answer = self.call(method, path, asked)
            yield from answer.get(key, [])
            token = answer.get("next_page_token")
            if not token or token == asked.get("page_token"):
                return
            asked["page_token"] = token

    def call(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of one route under /api/2.0/mlflow/."""
        url = f"{self.uri}/api/2.0/mlflow/{path}"
        return self._send(method, url, **({"params": body} if method == "GET" else {"json": body})).json()

    def _send(self, method: str, url: str, **request: Any) -> Any:
        import httpx

        try:
            answer = self._http.request(method, url, **request)
        except httpx.TransportError as error:
            raise UnavailableError(f"MLflow at {self.uri} does not answer: {type(error).__name__} {error}") from None
        if answer.is_success:
            return answer
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise UnavailableError(f"MLflow at {self.uri} answered {answer.status_code} to {method} {url}")
        try:
            told = answer.json()
        except ValueError:
            told = {}
        code = told.get("error_code", f"HTTP_{answer.status_code}")
        message = told.get("message", answer.text[:300])
        fix = ": check MLFLOW_TRACKING_TOKEN or _USERNAME and _PASSWORD" if answer.status_code in (401, 403) else ""
        raise MlflowRefused(code, f"MLflow at {self.uri} refused {method} {urlsplit(url).path}: {code} {message}{fix}")


def is_proxied(artifact_uri: str) -> bool:
    """Whether files at this address go through the server."""
    return artifact_uri.startswith("mlflow-artifacts:")


def json_number(value: float | str) -> float | str:
    """A number as JSON can carry it: protobuf's names for what is not finite."""
    if isinstance(value, str) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def now_ms() -> int:
    """Unix time in milliseconds, MLflow's unit."""
    return time.time_ns() // 1_000_000


def tracking_uri() -> str | None:
    """The server that MLFLOW_TRACKING_URI names, or None where it is unset or empty."""
    return os.environ.get(URI_VARIABLE) or None


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """Where a person sees a run."""
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
