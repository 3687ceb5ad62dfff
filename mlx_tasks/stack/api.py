"""The few calls of Airflow's REST API that the demo makes."""

from __future__ import annotations

import time
from typing import Any

import httpx

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.stack.layout import Layout
from mlx_tasks.stack.secrets import USER, load_secrets

TOKEN_LIFETIME_S = 3600.0


class AirflowApi:
    """A client for one stack. Every call raises UnavailableError when the server does not answer."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._client = httpx.Client(base_url=layout.airflow_url, timeout=30, trust_env=False)
        self._token: tuple[str, float] | None = None

    def wait_for_dag(self, dag_id: str, timeout_s: float = 120.0) -> None:
        """Return once Airflow has parsed the DAG.  Raises: UnavailableError with the import error, if there is one."""
        deadline = time.monotonic() + timeout_s
        while self._request("GET", f"/api/v2/dags/{dag_id}", accept=(200, 404)).status_code == 404:
            errors = self._request("GET", "/api/v2/importErrors").json().get("import_errors", [])
            if errors:
                raise UnavailableError("a DAG file does not import:\n" + errors[0]["stack_trace"])
            if time.monotonic() > deadline:
                raise UnavailableError(f"Airflow has not found the DAG {dag_id} in {timeout_s:.0f} s")
            time.sleep(1)

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """A pool of that many slots, made if there is none."""
        body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
        self._request("POST", "/api/v2/pools", json=body, accept=(201, 409))

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Start a run.  Raises: DataError with Airflow's reason where it refuses the parameters."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        answer = self._request("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body, accept=(200, 201, 400, 409, 422))
        if answer.status_code >= 400:
            raise DataError(f"Airflow refused the run: {answer.json().get('detail', answer.text)}")

    def pause(self, dag_id: str, paused: bool) -> None:
        """Let a DAG start no runs, or start them again."""
        self._request(
            "PATCH", f"/api/v2/dags/{dag_id}", params={"update_mask": "is_paused"}, json={"is_paused": paused}
        )

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The newest DAG runs, newest first."""
        path = f"/api/v2/dags/{dag_id}/dagRuns"
        return self._request("GET", path, params={"limit": 20, "order_by": "-run_after"}).json()["dag_runs"]

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One DAG run."""
        return self._request("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}").json()

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        return self._request("GET", path, params={"limit": 200}).json()["task_instances"]

    def xcom(self, dag_id: str, run_id: str, task: dict[str, Any], key: str) -> Any:
        """What a task instance handed on under a key, or None."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task['task_id']}/xcomEntries/{key}"
        options = {"map_index": task["map_index"], "deserialize": "true"}
        answer = self._request("GET", path, params=options, accept=(200, 404))
        return answer.json()["value"] if answer.status_code == 200 else None

    def stop_run(self, dag_id: str, run_id: str) -> None:
        """Mark a run failed, which ends its tasks."""
        self._request("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", json={"state": "failed"}, accept=(200, 404))

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> str:
        """One try's log as text."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        answer = self._request("GET", path, params={"map_index": map_index}, accept=(200, 404))
        if answer.status_code == 404:
            return ""
        return "\n".join(str(line.get("event", line)) for line in answer.json().get("content", []))

    def _request(self, method: str, path: str, accept: tuple[int, ...] = (200,), **options: Any) -> httpx.Response:
        last = ""
        for _ in range(6):
            try:
                answer = self._client.request(method, path, headers=self._headers(), **options)
                if answer.status_code in accept:
                    return answer
                last = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code == 401:
                    self._token = None
                elif answer.status_code < 500:
                    break
            except httpx.HTTPError as error:
                last = f"{type(error).__name__} {error}"
            time.sleep(1)
        raise UnavailableError(f"Airflow at {self._layout.airflow_url} does not answer {method} {path} rightly: {last}")

    def _headers(self) -> dict[str, str]:
        now = time.monotonic()
        if self._token is None or now - self._token[1] > TOKEN_LIFETIME_S:
            body = {"username": USER, "password": load_secrets(self._layout.state)["password"]}
            answer = self._client.post("/auth/token", json=body)
            answer.raise_for_status()
            self._token = (answer.json()["access_token"], now)
        return {"Authorization": f"Bearer {self._token[0]}"}
