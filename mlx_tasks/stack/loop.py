"""`make loop`: a champion serves under load, gets worse on purpose, and the chain mends it; no request is lost.

The monitor notices, its alert starts `optimize_diffusion` where it suggests, the new champion is deployed, and the
server takes it between two batches. What happened stands in a timeline.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from mlx_tasks.errors import DataError, StageError, UnavailableError
from mlx_tasks.files import write_json
from mlx_tasks.monitoring.window import read_window
from mlx_tasks.registry.mlflow_registry import Registry
from mlx_tasks.registry.names import CHAMPION, SERVING
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.demo import bring_up, clear_the_way
from mlx_tasks.stack.layout import Layout, is_free
from mlx_tasks.stack.news import STILL_S
from mlx_tasks.stack.waiting import reasons

OPTIMIZE, MONITOR, DEPLOY = "optimize_diffusion", "monitor_quality", "deploy_champion"
PATIENCE_S = 300.0
"""For what takes seconds; the chain itself may take RUN_S."""
RUN_S = 3600.0
PATIENT_TRIES = 60
"""Of a call to Airflow, a second apart: its API server may be started again meanwhile."""
LEAST_IMAGES = 100
"""Of a look at the window."""
CLIENTS, PAUSE_S, CALM_PAUSE_S = 2, 0.05, 0.5
"""Clients, and the seconds each waits between requests: while images are looked at, and while the chain computes."""


@dataclass
class Load:
    """Clients that never stop asking, and what became of their requests."""

    url: str
    classes: list[str]
    statuses: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    pause_s: float = PAUSE_S
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        """Ask while the block runs."""
        threads = [threading.Thread(target=self._ask, args=(k,), daemon=True) for k in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    @property
    def served(self) -> int:
        """Images that came."""
        return self.statuses.get("200", 0)

    @property
    def failed(self) -> int:
        """Requests that got no image."""
        return sum(count for status, count in self.statuses.items() if status != "200")

    def p95_ms(self) -> float:
        """What 95 of 100 requests took at most (ms)."""
        ordered = sorted(self.latencies_ms)
        return ordered[int(0.95 * (len(ordered) - 1))] if ordered else 0.0

    def _ask(self, seed: int) -> None:
        chosen = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as http:
            while not self._stop.wait(self.pause_s):
                body = {"seed": chosen.randrange(2**32)} | (
                    {"class": chosen.choice(self.classes)} if self.classes else {}
                )
                began = time.perf_counter()
                try:
                    status = str(http.post("/v1/images/generations", json=body).status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                with self._lock:
                    self.statuses[status] = self.statuses.get(status, 0) + 1
                    self.latencies_ms.append(1000 * (time.perf_counter() - began))


class Timeline:
    """What happened when, told as it happens and kept as JSON."""

    def __init__(self, path: Path) -> None:
        self._path, self._began = path, time.monotonic()
        self._events: list[dict[str, Any]] = []

    def tell(self, event: str, text: str, **more: Any) -> None:
        """One line."""
        at = time.monotonic() - self._began
        self._events.append({"event": event, "at_s": round(at, 1), "text": text, **more})
        write_json(self._path, self._events)
        print(f"loop: {at:7.1f} s  {text}", flush=True)


def loop(root: Path, model: str, damage: str) -> int:
    """Go round once; 0 where a new champion serves and no request failed.

    Raises: DataError without a champion; UnavailableError where something does not come about.
    """
    layout = Layout.of(root)
    api = bring_up(layout, _say, tries=PATIENT_TRIES)
    registry = Registry(layout.mlflow_url)
    champion = registry.by_alias(model, CHAMPION)
    if champion is None:
        raise DataError(f"{model} has no champion yet: `make demo` makes one, if its gate lets it through")
    clear_the_way(api, _say)
    if not is_free(layout.server_port):
        raise DataError(f"port {layout.server_port} is taken, and the loop's server listens there: set ADO_SERVER_PORT")
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
    folder = layout.state / "loop" / stamp
    timeline = Timeline(folder / "timeline.json")
    registry.set_alias(model, SERVING, champion.version)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(layout, model, folder, damage))
        serving = _wait("the server", lambda: _served(layout.server_url), PATIENCE_S)
        timeline.tell("serves", f"{serving['id']} serves at {layout.server_url}, {serving['nfe']} evaluations an image")
        stack.enter_context(_unpaused(api, MONITOR, DEPLOY))
        load = stack.enter_context(Load(layout.server_url, serving["classes"]).running())
        _wait_for_images(folder, serving["version"])
        report = _look(api, folder, model, f"loop__{stamp}_before")
        timeline.tell("sound", f"the monitor looks at {report['window']['images']} images: {_words(report)}")

        began = time.time()
        server.send_signal(signal.SIGUSR1)
        timeline.tell("damaged", f"the weights in memory are damaged on purpose ({damage})")
        report = _until_alert(api, folder, model, stamp, serving["version"])
        load.pause_s = CALM_PAUSE_S
        timeline.tell("alert", f"the monitor: {_words(report)}", suggestion=report["suggestion"])

        run_id = _wait("a run of the chain", lambda: _started(api, OPTIMIZE, began), PATIENCE_S)
        timeline.tell("run", f"{run_id} begins again at {report['suggestion']}", run_id=run_id)
        state = _wait(
            "the chain's end", lambda: _ended(api, OPTIMIZE, run_id), RUN_S, lambda: _waits_for(api, OPTIMIZE, run_id)
        )
        cached = [name for name, how in _statuses(api, run_id).items() if how == "cached"]
        timeline.tell(
            "made", f"the run ended: {state}; kept from the champion's: {', '.join(cached) or 'nothing'}", cached=cached
        )
        newest = registry.by_alias(model, CHAMPION)
        if state != "success" or newest is None or newest.version == champion.version:
            timeline.tell("refused", "no new champion: see the run's report; the old version is put back whole")
            return _finish(timeline, load, 1)
        timeline.tell("champion", f"{model}/{newest.version} is champion")
        _wait(
            "the new champion in service",
            lambda: _served(layout.server_url, newest.version),
            PATIENCE_S,
            lambda: _told_by_deployment(api, began, layout.server_url),
        )
        timeline.tell("swapped", f"{model}/{newest.version} serves")
        load.pause_s = PAUSE_S
        _wait_for_images(folder, newest.version)
        deployed = _wait("the deployment's end", lambda: _last_state(api, DEPLOY), PATIENCE_S)
        timeline.tell("verified", f"deploy_champion ended: {deployed}")
        report = _look(api, folder, model, f"loop__{stamp}_after")
        timeline.tell("mended", f"the monitor looks at {report['window']['images']} images: {_words(report)}")
        return _finish(timeline, load, 0 if deployed == "success" else 1)


def _finish(timeline: Timeline, load: Load, code: int) -> int:
    told = f"{load.served} requests served, {load.failed} failed, 95 of 100 within {load.p95_ms():.0f} ms"
    timeline.tell("end", told, served=load.served, failed=load.failed, statuses=load.statuses)
    return code if load.failed == 0 else 1


@contextlib.contextmanager
def _server(layout: Layout, model: str, folder: Path, damage: str) -> Iterator[subprocess.Popen]:
    """`mlx-tasks serve`, ended with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mlx_tasks", "serve", "--model", f"{model}@{SERVING}", "--port", str(layout.server_port),
        "--window", str(folder / "window"), "--store", str(layout.state / "serving" / "models"), "--drill", damage,
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_TRACKING_URI": layout.mlflow_url, "PYTHONUNBUFFERED": "1"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _unpaused(api: AirflowApi, *dag_ids: str) -> Iterator[None]:
    for dag_id in dag_ids:
        api.wait_for_dag(dag_id)
        api.pause(dag_id, False)
    try:
        yield
    finally:
        for dag_id in dag_ids:
            with contextlib.suppress(StageError):
                api.pause(dag_id, True)


def _look(api: AirflowApi, folder: Path, model: str, run_id: str) -> dict[str, Any]:
    """One look of the monitor at the window; its report."""
    conf = {"window": str(folder / "window"), "model": f"{model}@{SERVING}", "min_images": LEAST_IMAGES}
    api.trigger(MONITOR, run_id, conf)
    state = _wait("the monitor", lambda: _ended(api, MONITOR, run_id), PATIENCE_S)
    task = next(task for task in api.tasks(MONITOR, run_id) if task["task_id"] == "look")
    report = api.xcom(MONITOR, run_id, task, "return_value")
    if not isinstance(report, dict):
        raise UnavailableError(f"the monitor's run {run_id} ended {state} and told nothing: see its log in Airflow")
    return report


def _wait_for_images(folder: Path, version: str, count: int = 2 * LEAST_IMAGES) -> None:
    """Wait until the window holds so many images that a version draws from now on, and that can be compared.

    Images served are not yet images recorded: the recorder writes some seconds behind.
    """
    now = time.time()

    def recorded() -> bool:
        rows: Any = read_window(folder / "window", since=now)
        return bool(((rows["version"] == version) & rows["features"].notna()).sum() >= count)

    _wait(f"{count} recorded images of version {version}", recorded, PATIENCE_S)


def _until_alert(api: AirflowApi, folder: Path, model: str, stamp: str, version: str) -> dict[str, Any]:
    """Looks at fresh images until one of them raises an alert that suggests something."""
    for number in range(6):
        _wait_for_images(folder, version, 3 * LEAST_IMAGES)
        report = _look(api, folder, model, f"loop__{stamp}_{number}")
        if report["suggestion"]:
            return report
    raise UnavailableError("six looks at the damaged model raised no alert: damage it more, --damage noise:0.5")


def _words(report: dict[str, Any]) -> str:
    alerts = [f"{one['severity']} {one['metric']}: {one['message']}" for one in report["alerts"]]
    if report["measured"].get("skipped"):
        return f"nothing measured, {report['measured']['skipped']}"
    return "; ".join(alerts) or f"no alert, Frechet distance {report['measured']['frechet_distance']:.4g}"


def _served(url: str, version: str | None = None) -> dict[str, Any] | None:
    try:
        models = httpx.get(f"{url}/v1/models", timeout=5, trust_env=False).json()["data"]
    except (httpx.HTTPError, ValueError, KeyError):
        return None
    return next((one for one in models if one["serves"] and version in (None, one["version"])), None)


def _started(api: AirflowApi, dag_id: str, since: float) -> str | None:
    """The run that an asset started after a moment (Unix time)."""
    from datetime import datetime

    for run in api.runs(dag_id, newest=100):
        queued = datetime.fromisoformat(run["queued_at"] or run["run_after"]).timestamp()
        if run["run_type"] == "asset_triggered" and queued >= since:
            return run["dag_run_id"]
    return None


def _ended(api: AirflowApi, dag_id: str, run_id: str) -> str | None:
    state = api.run(dag_id, run_id)["state"]
    return state if state in ("success", "failed") else None


def _last_state(api: AirflowApi, dag_id: str) -> str | None:
    """How the newest run ended, once none is under way."""
    if api.runs(dag_id, states=("running", "queued")):
        return None
    newest = api.runs(dag_id, newest=1)
    return newest[0]["state"] if newest else None


def _told_by_deployment(api: AirflowApi, since: float, url: str) -> str:
    """Where the deployment begun since then stands, and the server.  Raises: UnavailableError if it failed."""
    run_id = _started(api, DEPLOY, since)
    if run_id is None:
        return f"no run of {DEPLOY} has started"
    state, tasks = api.run(DEPLOY, run_id)["state"], api.tasks(DEPLOY, run_id)
    states = [f"{task['task_id']} {task['state'] or 'waits'} (try {task['try_number']})" for task in tasks]
    whys = [api.xcom(DEPLOY, run_id, task, "why") for task in tasks]
    with contextlib.suppress(httpx.HTTPError, ValueError):
        whys.append(httpx.get(f"{url}/readyz", timeout=5, trust_env=False).json().get("problem"))
    told = "; ".join([", ".join(states), *(why for why in whys if why)])
    if state == "failed":
        raise UnavailableError(f"{DEPLOY} failed, so that the new champion does not serve: {told}")
    return f"{DEPLOY} is {state}: {told}"


def _waits_for(api: AirflowApi, dag_id: str, run_id: str) -> str:
    """What keeps a run from getting on, as far as it is known."""
    return "; ".join(reasons(api, dag_id, api.run(dag_id, run_id), api.tasks(dag_id, run_id), Path("/nonexistent")))


def _say(text: str) -> None:
    print(f"loop: {text}", flush=True)


def _statuses(api: AirflowApi, run_id: str) -> dict[str, str]:
    """Target -> ran or cached, as the nodes told."""
    results = [api.xcom(OPTIMIZE, run_id, task, "result") for task in api.tasks(OPTIMIZE, run_id)]
    return {result["target"]: result["status"] for result in results if result and "target" in result}


def _wait(what: str, look: Callable[[], Any], patience_s: float, stands: Callable[[], str] = lambda: "") -> Any:
    """What `look` finds, once it does.

    stands: says where it stands, or raises where waiting has no use; asked every five seconds, told after half a minute
        and when it changes.
    Raises: UnavailableError naming what was waited for.
    """
    began = told = time.monotonic()
    last = said = ""
    while not (found := look()):
        now = time.monotonic()
        if now - told > 5.0:
            told, last = now, stands()
            if last and last != said and now - began > STILL_S:
                said = last
                _say(f"waiting for {what}: {last}")
        if now - began > patience_s:
            raise UnavailableError(f"{what} did not come within {patience_s:g} s{': ' * bool(last)}{last}")
        time.sleep(0.5)
    return found
