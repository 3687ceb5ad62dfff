"""The operators, executed for real: real child processes, git and DVC; only Airflow's XCom is a dict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orchestration as o
import psutil
import pytest

from mlx_tasks.errors import RETRYABLE, ExitCode
from mlx_tasks.supervision import PARENT_VARIABLE

RUN_ID = "manual__2026-01-02T03:04:05+00:00"


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """plugins/stage_operator.py, with an Airflow home of its own."""
    os.environ.setdefault("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    sys.path.insert(0, str(o.ROOT / "plugins"))
    import stage_operator

    return stage_operator


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return o.make_repository(tmp_path_factory.mktemp("operator"))


class Instance:
    """What a task sees of Airflow's XCom."""

    def __init__(self, task_id: str, values: dict[tuple[str, str], list[Any]]) -> None:
        self.task_id, self.run_id, self.values = task_id, RUN_ID, values

    def xcom_push(self, key: str, value: Any) -> None:
        json.dumps(value, allow_nan=False)
        self.values.setdefault((self.task_id, key), []).append(value)

    def xcom_pull(self, task_ids: list[str], key: str) -> list[Any]:
        """As Airflow's: one entry per value, None for a task without any."""
        return [value for name in task_ids for value in self.values.get((name, key)) or [None]]


class Runner:
    """Executes tasks of one small DAG, as Airflow's task runner would."""

    def __init__(self, operators: Any, env: dict[str, str]) -> None:
        from airflow.sdk import DAG

        self.dag = DAG("small", schedule=None)
        self.operators, self.env = operators, env
        self.xcom: dict[tuple[str, str], list[Any]] = {}
        self.opened = operators.OpenRunOperator(task_id="open_run", dag=self.dag)

    def stage(self, task_id: str, upstream: Any, **kwargs: Any) -> Any:
        task = self.operators.StageOperator(task_id=task_id, dag=self.dag, **kwargs)
        upstream >> task
        return task

    def run(self, task: Any, params: dict[str, Any] | None = None) -> Any:
        from airflow.sdk.bases.operator import ExecutorSafeguard

        context = {"ti": Instance(task.task_id, self.xcom), "run_id": RUN_ID, "params": params or {}}
        token = ExecutorSafeguard.tracker.set(task)
        try:
            return task.execute(context=context)
        finally:
            ExecutorSafeguard.tracker.reset(token)

    def workspace(self) -> Path:
        run = self.xcom["open_run", "result"][-1]
        return Path(self.env["ADO_STATE"]) / "workspaces" / run["slug"]


@pytest.fixture
def runner(operators, repository, tmp_path, monkeypatch) -> Runner:
    env = o.environment(repository, tmp_path / "state")
    for name in set(os.environ) - set(env):
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return Runner(operators, env)


def behave(env: dict[str, str], **behaviour: Any) -> None:
    Path(env["TEST_BEHAVIOUR"]).write_text(json.dumps(behaviour))


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def logged(operators: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that tasks write to their logs, as they come."""
    lines: list[str] = []
    recorder = SimpleNamespace(info=lambda text, *args: lines.append(text % args), warning=lambda *a: None)
    monkeypatch.setattr(operators.ProcessOperator, "log", recorder)
    return lines


def test_a_run_is_opened_a_stage_runs_and_only_small_values_travel(runner, monkeypatch):
    lines = logged(runner.operators, monkeypatch)
    shown = runner.run(runner.opened, {"seed": 4, "promotion": "off", "overrides": None})
    assert shown["branch"].startswith("runs/manual__2026-01-02T03-04-05-00-00-")
    plan = runner.stage(
        "plan", runner.opened, stage="search_plan", arguments={"generation": "0"}, fan_out="search_trial"
    )
    assert runner.run(plan) == [{"generation": 0, "slot": slot} for slot in (0, 1, 2)]
    assert "[search_plan_0] 2/2 steps" in "\n".join(lines)
    assert not any("::mlx-tasks::" in line for line in lines)
    trial = runner.stage("trial", plan, stage="validate")
    assert runner.run(trial) == {
        "target": "validate", "status": "ran", "metrics": {"target": "validate", "seed": 4},
        "seconds": pytest.approx(5, abs=60),
    }  # fmt: skip
    assert runner.run(trial)["status"] == "cached"
    shares = runner.stage("shares", trial, stage="validate", fan_out="score_share")
    assert runner.run(shares) == [{"slot": 0}, {"slot": 1}]  # evaluate.slots, with no arguments of the stage before
    assert all(len(json.dumps(value)) < 16_000 for values in runner.xcom.values() for value in values)
    close = runner.operators.CloseRunOperator(task_id="close_run", last="validate", dag=runner.dag)
    trial >> close
    closed = runner.run(close)
    assert closed["succeeded"]
    lock = o.run_git(Path(runner.env["ADO_REPOSITORY"]), "show", f"{closed['commit']}:dvc.lock")
    assert {"search_plan_0:", "validate:"} <= set(lock.split())


def test_a_bad_value_fails_the_first_task_for_good(runner, operators):
    with pytest.raises(operators.AirflowFailException, match=r"BAD_INPUT.*train\.resolutions"):
        runner.run(runner.opened, {"resolutions": [9]})


def test_the_newest_alert_comes_last_in_whatever_order_airflow_gives_them(operators):
    """The last one's version is where a run begins again."""
    events = [
        SimpleNamespace(
            extra={"name": "digits", "version": str(day), "alerts": [{"metric": "drift", "message": f"day {day}"}]},
            timestamp=datetime(2026, 1, day, tzinfo=UTC),
        )
        for day in (2, 3, 1)
    ]
    for order in permutations([*events, SimpleNamespace(extra=None, timestamp=datetime(2026, 1, 4, tzinfo=UTC))]):
        alerts = operators.alerts_of({"quality_alert": order})
        assert [one["begin_with"] for one in alerts] == ["digits/1", "digits/2", "digits/3"]
        assert [one["message"] for one in alerts] == ["day 1", "day 2", "day 3"]
    assert operators.alerts_of(None) == operators.alerts_of({}) == []


@pytest.mark.parametrize("code", [*ExitCode, 255, 137, 139, -9])
def test_only_what_a_retry_can_mend_is_retried(operators, code):
    if code == ExitCode.OK:
        return
    error = operators.failure(code, "why", "node")
    by_signal = code in (137, 139, 255, -9)
    retried = by_signal or code in RETRYABLE
    assert isinstance(error, operators.AirflowFailException) != retried
    assert ("signal" if by_signal else f"exit code {int(code)}") in str(error)


def test_the_stages_own_kind_reaches_airflow(runner, operators):
    runner.run(runner.opened)
    validate = runner.stage("validate", runner.opened, stage="validate")
    behave(runner.env, validate={"fails": 1, "kind": "diverged"})
    with pytest.raises(operators.AirflowFailException, match=r"DIVERGED.*step 3; last finite loss 0\.5"):
        runner.run(validate)
    behave(runner.env, validate={"fails": 2, "kind": "kill"})
    with pytest.raises(operators.AirflowException, match="killed by signal 9") as raised:
        runner.run(validate)
    assert not isinstance(raised.value, operators.AirflowFailException)
    assert runner.run(validate)["status"] == "ran"  # Airflow's retry: the workspace is still there


def test_a_killed_task_takes_everything_along_within_airflows_five_seconds(runner, operators, tmp_path):
    runner.run(runner.opened)
    started = tmp_path / "started"
    behave(runner.env, validate={"fails": 99, "kind": "hang", "started": str(started)})
    validate = runner.stage("validate", runner.opened, stage="validate")
    took: list[float] = []

    def kill() -> None:
        while not (started.exists() and started.read_text()):
            time.sleep(0.05)
        begin = time.monotonic()
        validate.on_kill()
        took.append(time.monotonic() - begin)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(operators.AirflowException):
        runner.run(validate)
    killer.join()
    assert took[0] < 4.5
    assert gone(int(started.read_text()))
    record = json.loads((runner.workspace() / ".run/stages/validate.json").read_text())
    assert record["exit_code"] == ExitCode.INTERRUPTED  # it had the time to say so


def test_a_task_over_its_time_takes_everything_along_and_is_not_tried_again(runner, operators, tmp_path):
    from airflow.sdk.execution_time.timeout import TimeoutPosix

    runner.run(runner.opened)
    started = tmp_path / "started"
    behave(runner.env, validate={"fails": 99, "kind": "hang", "started": str(started)})
    validate = runner.stage("validate", runner.opened, stage="validate")
    assert validate.execution_timeout == operators.task_timeout("validate")

    def expire() -> None:
        while not (started.exists() and started.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGALRM)

    threading.Thread(target=expire).start()
    with pytest.raises(operators.AirflowFailException, match=r"TIMED_OUT.*ADO_LIMIT_HOURS.*checkpoint is kept"):
        with TimeoutPosix(600):
            runner.run(validate)
    assert gone(int(started.read_text()))


def test_a_task_that_vanishes_leaves_no_stage_behind(runner, tmp_path):
    runner.run(runner.opened)
    started = tmp_path / "started"
    behave(runner.env, validate={"fails": 99, "kind": "hang", "started": str(started)})
    runner.stage("validate", runner.opened, stage="validate")
    run = runner.xcom["open_run", "result"][-1]
    spec = {"run": run, "stage": "validate"}
    # A process in the place of Airflow's task: it starts the node as the operator does, and is killed.
    script = (
        "import json, os, subprocess, sys, time; sys.path.insert(0, sys.argv[1]); import stage_operator as so;"
        "p = subprocess.Popen([sys.executable, '-m', 'mlx_tasks', 'node', '--spec', sys.argv[2]],"
        " env=so._child_environment(), start_new_session=True); time.sleep(600)"
    )
    task = subprocess.Popen([sys.executable, "-c", script, str(o.ROOT / "plugins"), json.dumps(spec)])
    while not (started.exists() and started.read_text()):
        assert task.poll() is None
        time.sleep(0.05)
    stage = int(started.read_text())
    task.send_signal(signal.SIGKILL)
    task.wait()
    begin = time.monotonic()
    while not gone(stage) and time.monotonic() - begin < 5:
        time.sleep(0.02)
    assert time.monotonic() - begin < 2.0
    assert os.environ.get(PARENT_VARIABLE) is None


def test_links_name_the_mlflow_run_and_the_report(operators):
    from airflow.sdk import DAG

    with DAG("linked", schedule=None):
        report = operators.ReportOperator(task_id="report", stage="report")
    key = SimpleNamespace(run_id=RUN_ID)
    assert operators.MlflowRunLink().get_link(report, ti_key=key) == ""
    instance = Instance("report", {})
    report._tell_mlflow_run({"ti": instance}, "http://127.0.0.1:5050/#/experiments/1/runs/abc")
    assert operators.MlflowRunLink().get_link(report, ti_key=key).endswith("/runs/abc")
    assert instance.values["report", operators.MlflowRunLink().xcom_key] == [report.mlflow_url]
    assert (
        operators.ReportLink()
        .get_link(report, ti_key=key)
        .endswith("/optimizer/runs/manual__2026-01-02T03%3A04%3A05%2B00%3A00/report")
    )


def test_the_run_view_shows_progress_then_the_report_and_nothing_else(operators, tmp_path):
    import run_view
    from mlx_tasks.files import write_json
    from mlx_tasks.progress import Progress
    from mlx_tasks.workspace.paths import workspace_path

    state = tmp_path / "state"
    assert run_view.report_page(state, RUN_ID) is None
    (state / "secret.txt").parent.mkdir(parents=True)
    (state / "secret.txt").write_text("secret")
    for run_id in ("../secret.txt", "../../etc", "..", "/etc/passwd", "%2e%2e"):
        assert run_view.report_page(state, run_id) is None
    workspace = workspace_path(state, RUN_ID)
    Progress("train", workspace / ".run" / "progress", echo=lambda *a, **k: None).update(3, 9, phase="<16 px>")
    write_json(workspace / ".run/stages/validate.json", {"target": "validate", "seconds": 1.5, "exit_code": 0})
    page = run_view.report_page(state, RUN_ID)
    assert "[train &lt;16 px&gt;] 3/9 steps" in page
    assert "validate: done, 1.5 s" in page
    (workspace / "work" / "report").mkdir(parents=True)
    (workspace / "work" / "report" / "report.html").write_text("<h1>The report</h1>")
    assert run_view.report_page(state, RUN_ID) == "<h1>The report</h1>"


def test_the_run_view_asks_for_a_login_and_lets_no_script_run(operators, tmp_path, monkeypatch):
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    import run_view
    from mlx_tasks.workspace.paths import workspace_path

    monkeypatch.setenv("ADO_STATE", str(tmp_path))
    report = workspace_path(tmp_path, RUN_ID) / "work" / "report" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<h1>The report</h1>")
    app = run_view.create_app()
    client = TestClient(app)
    path = "/runs/manual__2026-01-02T03%3A04%3A05%2B00%3A00"
    assert client.get(f"{path}/report").status_code == 401
    app.dependency_overrides[get_user] = lambda: "someone"
    answer = client.get(f"{path}/report")
    assert (answer.status_code, answer.text) == (200, "<h1>The report</h1>")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    assert client.get(f"{path}/progress").json() == {"run_id": RUN_ID, "progress": [], "stages": []}
    for path in ("/runs/..%2f..%2fsecret/report", "/runs/other/report", "/runs/other/progress"):
        assert client.get(path).status_code == 404
