"""What starts a run: the schedule, fired by a real scheduler, and the form, filled in by hand in a real Chromium."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import orchestration as o
import pytest
import yaml
from debian import program
from playwright.sync_api import expect, sync_playwright
from test_alert_receiver import DAG, Airflow

from mlx_tasks.form import resolve

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

DATASET = "/Volumes/Disk #2/Trip: Rome"
"""A folder's name as people have them; to YAML it would be a comment and a mapping."""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """An API server and a scheduler, with a schedule of every minute and a repository whose stages take no time."""
    folder = tmp_path_factory.mktemp("starts")
    os.environ["ADO_SCHEDULE"] = "* * * * *"
    try:
        running = Airflow(folder, ADO_REPOSITORY=str(o.make_repository(folder)), ADO_RETRIES="0")
    finally:
        del os.environ["ADO_SCHEDULE"]
    del running.environment["MLFLOW_TRACKING_URI"]  # records stay on disk: no MLflow is needed here
    running.start("api-server")
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def wait_for(what, found, seconds=150):
    """What `found` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.5)
    return answer


def task(airflow, run_id, name):
    """A task of a run, as it stands."""
    return next(one for one in airflow.api.tasks(DAG, run_id) if one["task_id"] == name)


def test_the_form_starts_a_run_with_what_was_typed(airflow):
    """Typed by hand in Airflow's own page; what is left empty says that the preset's value holds."""
    token = airflow.api._headers()["Authorization"].removeprefix("Bearer ")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program("chromium", "chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = chromium.new_page(viewport={"width": 1300, "height": 1500})
        page.context.add_cookies([{"name": "_token", "value": token, "url": airflow.layout.airflow_url}])
        page.goto(f"{airflow.layout.airflow_url}/dags/{DAG}")
        page.get_by_role("button", name="Trigger").first.click(timeout=60_000)
        page.locator("#element_dataset").fill(DATASET)
        page.locator("[name=element_steps_to_reach]").fill("2")
        page.locator("#element_methods").fill("cma_es\nleast_squares")
        page.locator("#element_reason").fill("tried by hand")
        page.get_by_role("button", name="Trigger").last.click()
        expect(page.get_by_text("Trigger Dag - ")).to_be_hidden(timeout=30_000)
        chromium.close()
    (run,) = [run for run in airflow.runs().values() if run["run_type"] == "manual"]
    told = {name: value for name, value in run["conf"].items() if value not in (None, [], {}, "")}
    typed = {"dataset": DATASET, "steps_to_reach": 2, "methods": ["cma_es", "least_squares"], "reason": "tried by hand"}
    assert told | typed == told, told
    assert set(told) - set(typed) <= {"promotion", "preset"} and told["promotion"] == "preset"
    airflow.api.stop_run(DAG, run["dag_run_id"])


def test_the_schedule_fires_and_its_run_opens(airflow):
    """A run of its own accord, at a whole minute, with the form's defaults; it gets its workspace and its branch."""
    before = datetime.now(UTC)
    airflow.start("scheduler", "--skip-serve-logs")
    run = wait_for("scheduled run", lambda: [r for r in airflow.runs().values() if r["run_type"] == "scheduled"])[0]
    due = datetime.fromisoformat(run["run_after"].replace("Z", "+00:00"))
    assert due.second == 0 and abs((due - before).total_seconds()) < 180
    run_id = run["dag_run_id"]
    opened = wait_for("end of open_run", lambda: task(airflow, run_id, "open_run")["state"] in ("success", "failed"))
    assert opened and task(airflow, run_id, "open_run")["state"] == "success", airflow.api.task_log(
        DAG, run_id, "open_run", 1
    )
    airflow.api.stop_run(DAG, run_id)
    made = airflow.api.xcom(DAG, run_id, task(airflow, run_id, "open_run"), "result")
    repository = airflow.environment["ADO_REPOSITORY"]
    assert o.run_git(repository, "rev-parse", made["branch"]).strip() == made["commit"]
    kept = yaml.safe_load(o.run_git(repository, "show", f"{made['branch']}:params.yaml"))
    demo, plain = (resolve(Path(repository), {"preset": preset}).train.steps for preset in ("demo", None))
    assert kept["train"]["steps"] == demo != plain  # the preset that the form opens with
