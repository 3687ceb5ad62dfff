"""The few calls of Airflow's REST API that the embedded stack's commands make."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote

import httpx

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.stack.layout import Layout
from mlx_tasks.stack.secrets import USER, load_secrets

TOKEN_LIFETIME_S = 3600.0
PAGE = 100
"""Rows asked for at once; Airflow gives no more, whatever is asked (api.maximum_page_limit)."""
TRIES = 6


class AirflowApi:
    """A client for one stack. Every call raises UnavailableError when the server does not answer."""

    def __init__(self, layout: Layout, tries: int = TRIES) -> None:
        """tries: how often, a second apart, a call is made until the server answers."""
        self.layout, self._tries = layout, tries
        self._client = httpx.Client(base_url=layout.airflow_url, timeout=30, trust_env=False)
        self._token: tuple[str, float] | None = None

    @property
    def url(self) -> str:
        """Where Airflow's pages are."""
        return self.layout.airflow_url

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
        """A pool of that many slots, made if there is none; one that is there stays as it is."""
        body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
        self._request("POST", "/api/v2/pools", json=body, accept=(201, 409))

    def pool(self, name: str) -> dict[str, Any] | None:
        """A pool with its slots as they are taken now, or None where there is none of that name."""
        answer = self._request("GET", f"/api/v2/pools/{quote(name, safe='')}", accept=(200, 404))
        return answer.json() if answer.status_code == 200 else None

    def dag(self, dag_id: str) -> dict[str, Any]:
        """A DAG: is_paused, max_active_runs, ..."""
        return self._request("GET", f"/api/v2/dags/{dag_id}/details").json()

    def dag_tasks(self, dag_id: str) -> list[dict[str, Any]]:
        """A DAG's tasks: pool, queue, retry_delay, ..."""
        return self._request("GET", f"/api/v2/dags/{dag_id}/tasks").json()["tasks"]

    def health(self) -> dict[str, Any]:
        """What the API server knows of the other parts' heartbeats."""
        return self._request("GET", "/api/v2/monitor/health").json()

    def edge_workers(self) -> list[dict[str, Any]] | None:
        """The workers elsewhere, or None where this Airflow runs tasks by itself."""
        answer = self._request("GET", "/edge_worker/ui/worker", accept=(200, 404))
        try:
            return answer.json()["workers"] if answer.status_code == 200 else None
        except (ValueError, KeyError):  # the UI's own page answers every address that no part has
            return None

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

    def runs(self, dag_id: str, newest: int | None = None, states: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """The DAG runs, newest first: all of them, so many of the newest, or those in some states."""
        options = {"order_by": "-run_after", **({"state": list(states)} if states else {})}
        return list(islice(self._pages(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs", options), newest))

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One DAG run.  Raises: DataError where there is none."""
        answer = self._request("GET", f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}", accept=(200, 404))
        if answer.status_code == 404:
            raise DataError(
                f"{dag_id} has no run {run_id!r} at {self.url}: its runs are at {self.url}/dags/{dag_id}/runs"
            )
        return answer.json()

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances, all of them."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        rows = self._pages(path, "task_instances", {})
        return list({(row["task_id"], row["map_index"]): row for row in rows}.values())

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
        """One try's log as text, to its end."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        lines: list[str] = []
        options: dict[str, Any] = {"map_index": map_index, "full_content": "true"}
        while True:
            answer = self._request("GET", path, params=options, accept=(200, 404))
            told = answer.json() if answer.status_code == 200 else {}
            content = told.get("content") or []
            lines += [str(line.get("event", line)) if isinstance(line, dict) else str(line) for line in content]
            token = told.get("continuation_token")
            if not token or not content or token == options.get("token"):
                return "\n".join(lines)
            options["token"] = token

    def _pages(self, path: str, key: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The rows of a list, page by page until its end: a server may give fewer rows a page than it was asked for."""
        offset = 0
        while True:
            told = self._request("GET", path, params={**options, "limit": PAGE, "offset": offset}).json()
            rows = told[key]
            yield from rows
            offset += len(rows)
            total = told.get("total_entries")
            if not rows or (total is not None and offset >= total):
                return

    def _request(self, method: str, path: str, accept: tuple[int, ...] = (200,), **options: Any) -> httpx.Response:
        last = ""
        for tried in range(1, self._tries + 1):
            try:
                answer = self._client.request(method, path, headers=self._headers(), **options)
                if answer.status_code in accept:
                    return answer
                last = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code == 401:
                    self._token = None
                elif answer.status_code < 500:
                    break
            except (httpx.HTTPError, ValueError, KeyError) as error:  # also a stranger's page in the token's place
                last = f"{type(error).__name__} {error}"
            if tried < self._tries:
                time.sleep(1)
        raise UnavailableError(f"Airflow at {self.layout.airflow_url} does not answer {method} {path} rightly: {last}")

    def _headers(self) -> dict[str, str]:
        now = time.monotonic()
        if self._token is None or now - self._token[1] > TOKEN_LIFETIME_S:
            body = {"username": USER, "password": load_secrets(self.layout.state)["password"]}
            answer = self._client.post("/auth/token", json=body)
            answer.raise_for_status()
            self._token = (answer.json()["access_token"], now)
        return {"Authorization": f"Bearer {self._token[0]}"}
