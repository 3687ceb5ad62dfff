"""Facts about the way in for outside alerts: under a real API server, with no scheduler until late."""

import contextlib
import gzip
import hashlib
import hmac
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from ports import free_port

from mlx_tasks.stack import services
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.layout import Layout
from mlx_tasks.stack.secrets import load_secrets
from mlx_tasks.workspace.again import with_alerts

ROOT = Path(__file__).resolve().parent.parent
DAG = "optimize_diffusion"


class Airflow:
    """An API server over a database of its own; the scheduler is started by who wants one."""

    def __init__(self, folder: Path, **more: str) -> None:
        os.environ["ADO_STATE"] = str(folder)
        os.environ["ADO_AIRFLOW_PORT"] = str(free_port())
        try:
            self.layout = Layout.of(ROOT)
        finally:
            del os.environ["ADO_STATE"], os.environ["ADO_AIRFLOW_PORT"]
        self.layout.airflow_home.mkdir(parents=True, exist_ok=True)
        self.environment = services.environment(self.layout)
        # Where nothing else is told runs end at once: what they do is shown elsewhere.
        self.environment.update({"ADO_REPOSITORY": str(folder / "nowhere"), **more})
        self.secrets = load_secrets(self.layout.state)
        self.log = (folder / "airflow.log").open("ab")
        self.processes: list[subprocess.Popen] = []
        self.run("db", "migrate")
        self.run("dags", "reserialize")
        self.api = AirflowApi(self.layout)

    def run(self, *arguments):
        command = [sys.executable, "-m", "airflow", *arguments]
        subprocess.run(command, env=self.environment, check=True, stdout=self.log, stderr=self.log, timeout=180)

    def start(self, *arguments):
        command = [sys.executable, "-m", "airflow", *arguments]
        process = subprocess.Popen(
            command, env=self.environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        self.processes.append(process)
        return process

    def wait(self, seconds=120):
        """Return once the API server answers."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.layout.airflow_url}/api/v2/version", timeout=2, trust_env=False).is_success:
                    return
            assert time.monotonic() < deadline, f"the API server did not answer in {seconds} s"
            time.sleep(0.5)

    def stop(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, 15)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
        self.log.close()

    def end(self, run_id="%"):
        """Runs that wait as if they had been at work and failed; the API leaves a run without tasks in its queue."""
        with contextlib.closing(sqlite3.connect(self.layout.airflow_home / "airflow.db", timeout=30)) as database:
            database.execute("UPDATE dag_run SET state='failed' WHERE state='queued' AND run_id LIKE ?", (run_id,))
            database.commit()

    def runs(self):
        found = self.api._request("GET", f"/api/v2/dags/{DAG}/dagRuns", params={"limit": 100}).json()
        return {run["dag_run_id"]: run for run in found["dag_runs"]}

    def post(self, route, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            f"{self.layout.airflow_url}/alerts/{route}",
            content=data,
            headers=headers or {},
            timeout=30,
            trust_env=False,
        )

    def bearer(self):
        return {"Authorization": f"Bearer {self.secrets['alert_token']}"}

    def signed(self, body, at=None, secret=None, names=("X-Alert-Signature", "X-Alert-Timestamp")):
        data, at = json.dumps(body).encode(), str(int(time.time()) if at is None else at)
        key = (secret or self.secrets["alert_secret"]).encode()
        return data, {names[0]: hmac.new(key, at.encode() + b":" + data, hashlib.sha256).hexdigest(), names[1]: at}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    running = Airflow(tmp_path_factory.mktemp("alerts"))
    running.start("api-server")
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def nothing_waits(airflow):
    """Alerts join a run that waits: every test begins without one."""
    airflow.end()


def firing(fingerprint, began="2026-01-02T03:04:05Z", redo="distill", status="firing", **notes):
    """One alert as Alertmanager sends it."""
    return {
        "status": status,
        "labels": {"alertname": "QualitySlipped", "metric": "frechet_distance", **({"redo": redo} if redo else {})},
        "annotations": {"summary": "worse", "value": "0.3", "limit": "0.2", "window": "last hour", **notes},
        "startsAt": began,
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": fingerprint,
    }


def group(*alerts):
    return {"version": "4", "status": "firing", "groupKey": "{}", "alerts": list(alerts)}


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_the_same_alert_ten_times_is_one_run_with_the_reason_on_it(airflow):
    before = set(airflow.runs())
    body = group(firing("a1"))
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: airflow.post("alertmanager", body, airflow.bearer()), range(10)))
    kept = [answer for answer in answers if answer.status_code == 200]
    assert len(kept) >= 1 and {answer.status_code for answer in answers} <= {200, 503}
    assert airflow.post("alertmanager", body, airflow.bearer()).json()["told"] == "these have their run already"
    (run_id,) = set(airflow.runs()) - before
    assert run_id.startswith("alert__") and {answer.json()["run_id"] for answer in kept} == {run_id}
    run = airflow.runs()[run_id]
    assert run["state"] == "queued" and run["triggering_user_name"] == "alerts"
    assert run["note"] == "Started by alerts:\nfrechet_distance 0.3 (limit 0.2), window last hour: worse"
    (told,) = run["conf"]["alerts"]
    assert told["suggestion"] == "distill" and told["fingerprint"] == "a1" and told["status"] == "new"


def test_a_group_is_one_run_which_a_later_member_joins_while_it_waits(airflow):
    before = set(airflow.runs())
    first = airflow.post("alertmanager", group(firing("b1"), firing("b2", redo="tune")), airflow.bearer()).json()
    (run_id,) = set(airflow.runs()) - before
    assert first == {"run_id": run_id, "alerts": 2, "told": "a run was made"}
    assert [one["fingerprint"] for one in airflow.runs()[run_id]["conf"]["alerts"]] == ["b1", "b2"]
    grown = group(firing("b1"), firing("b2", redo="tune"), firing("b3"))
    second = airflow.post("alertmanager", grown, airflow.bearer()).json()
    assert second == {"run_id": run_id, "alerts": 1, "told": "they joined a run that waits"}
    joined = airflow.runs()[run_id]
    assert [one["fingerprint"] for one in joined["conf"]["alerts"]] == ["b1", "b2", "b3"]
    assert joined["note"].count("frechet_distance") == 3
    flapping = group(firing("b1", began="2026-01-02T04:00:00Z"))  # resolved and back within the cooldown
    assert airflow.post("alertmanager", flapping, airflow.bearer()).json()["told"] == "these have their run already"
    assert set(airflow.runs()) - before == {run_id}
    airflow.end(run_id)  # it waits no more
    third = airflow.post("alertmanager", group(firing("b3"), firing("b4")), airflow.bearer()).json()
    assert third["run_id"] != run_id and (third["alerts"], third["told"]) == (1, "a run was made")


def test_overlapping_groups_at_once_are_one_run(airflow):
    before = set(airflow.runs())
    groups = [group(*(firing(f"o{i + j}") for j in range(3))) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda body: airflow.post("alertmanager", body, airflow.bearer()), groups))
    assert [answer.status_code for answer in answers] == [200] * 6
    (run_id,) = set(airflow.runs()) - before
    told = [one["fingerprint"] for one in airflow.runs()[run_id]["conf"]["alerts"]]
    assert sorted(told) == [f"o{i}" for i in range(8)]


def test_twenty_alerts_one_after_the_other_are_one_chain(airflow):
    before = set(airflow.runs())
    for number in range(20):
        assert airflow.post("alertmanager", group(firing(f"t{number}")), airflow.bearer()).status_code == 200
    assert len(set(airflow.runs()) - before) == 1


def test_more_alerts_than_a_form_shows_are_all_kept_and_found_again(airflow):
    before = set(airflow.runs())
    many = [firing(f"m{number}", redo="train" if number == 700 else "tune") for number in range(1500)]
    answer = airflow.post("alertmanager", group(*many), airflow.bearer())
    assert (answer.status_code, answer.json()["alerts"]) == (200, 1500)
    (run_id,) = set(airflow.runs()) - before
    *shown, rest = airflow.runs()[run_id]["conf"]["alerts"]
    assert [one["fingerprint"] for one in shown] == [f"m{number}" for number in range(50)]
    assert rest["metric"] == "1450 more alerts" and len(rest["covers"]) == 1450 and rest["suggestion"] == "train"
    assert with_alerts({"alerts": [*shown, rest]})["start_from"] == "train"
    again = airflow.post("alertmanager", group(*reversed(many)), airflow.bearer()).json()
    assert again == {"run_id": run_id, "alerts": 1500, "told": "these have their run already"}
    more = airflow.post("alertmanager", group(many[1400], firing("m-new")), airflow.bearer()).json()
    assert more == {"run_id": run_id, "alerts": 1, "told": "they joined a run that waits"}
    assert len(airflow.runs()[run_id]["conf"]["alerts"][-1]["covers"]) == 1451


WRITTEN = {"metric": "m", "value": None, "limit": None, "message": "x", "suggestion": "tune", "id": "i",
           "fingerprint": "f"}  # fmt: skip
"""As the receiver writes an alert into a run's form."""


@pytest.mark.parametrize(
    "form",
    [
        {"alerts": ["x", 3, None]},
        {"alerts": [{"metric": "m"}]},
        {"alerts": [{"id": 3, "fingerprint": ["f"]}]},
        {"alerts": [{**WRITTEN, "value": "high"}]},
        {"alerts": [{**WRITTEN, "limit": [1]}]},
        {"alerts": [{**WRITTEN, "value": 10**400}]},
        {"alerts": [{**WRITTEN, "covers": 5}]},
        {"alerts": [{**WRITTEN, "covers": [["a"]]}]},
    ],
)
def test_what_others_wrote_into_a_runs_form_stops_no_alert(airflow, form):
    run_id = f"alert__by-hand-{abs(hash(json.dumps(form)))}"
    airflow.api.trigger(DAG, run_id, form)
    answer = airflow.post("alertmanager", group(firing(f"w{run_id}")), airflow.bearer())
    assert answer.status_code == 200 and answer.json()["told"] == "a run was made"
    assert airflow.runs()[run_id]["conf"]["alerts"] == form["alerts"]


def test_a_label_that_asks_for_something_unknown_is_told(airflow):
    wrong = firing("typo", redo="trian")
    answer = airflow.post("alertmanager", group(wrong), airflow.bearer()).json()
    assert answer["run_id"] is None and "redo or the suggestion: tune, distill, train, validate" in answer["told"]
    answer = airflow.post("alertmanager", group(wrong, firing("no-typo")), airflow.bearer())
    assert (answer.status_code, answer.json()["alerts"]) == (200, 1)


def test_long_fingerprints_that_begin_alike_are_two_alerts(airflow):
    before = set(airflow.runs())
    sent = [firing(f"{'x' * 80}{number}") for number in range(2)]
    assert airflow.post("alertmanager", group(sent[0]), airflow.bearer()).json()["told"] == "a run was made"
    told = airflow.post("alertmanager", group(sent[1]), airflow.bearer()).json()["told"]
    assert told == "they joined a run that waits" and len(set(airflow.runs()) - before) == 1


def test_a_packed_body_is_a_415(airflow):
    given = {**airflow.bearer(), "Content-Encoding": "gzip"}
    answer = airflow.post("alertmanager", gzip.compress(json.dumps(group(firing("gz"))).encode()), given)
    assert answer.status_code == 415 and "without Content-Encoding, got 'gzip'" in answer.text


def test_where_no_run_can_be_joined_only_two_wait_and_the_sender_is_asked_to_send_again(airflow):
    for number in range(2):
        airflow.api.trigger(DAG, f"alert__foreign-{number}", {"alerts": [{"metric": "m", "message": "m"}]})
    before = set(airflow.runs())
    answer = airflow.post("alertmanager", group(firing("q1")), airflow.bearer())
    assert answer.status_code == 503 and "send it again: 2 runs of alerts wait already" in answer.text
    assert set(airflow.runs()) == before
    airflow.end("alert__foreign-0")
    assert airflow.post("alertmanager", group(firing("q1")), airflow.bearer()).json()["told"] == "a run was made"


def test_what_is_resolved_or_asks_for_nothing_starts_nothing(airflow):
    before = set(airflow.runs())
    for body in (group(firing("c1", status="resolved")), group(firing("c2", redo="")), group(firing("c3", redo="all"))):
        answer = airflow.post("alertmanager", body, airflow.bearer())
        assert answer.status_code == 200 and answer.json()["run_id"] is None
    assert set(airflow.runs()) == before


def test_signed_alerts_start_runs_too(airflow):
    before = set(airflow.runs())
    names = ("X-Grafana-Alerting-Signature", "X-Grafana-Alerting-Timestamp")
    data, headers = airflow.signed(group(firing("d1")), names=names)
    assert airflow.post("grafana", data, headers).json()["told"] == "a run was made"
    one = {"metric": "p95", "value": 120, "limit": 80, "message": "slow", "suggestion": "tune"}
    data, headers = airflow.signed({"alerts": [one]})
    assert airflow.post("generic", data, headers).json()["told"] == "they joined a run that waits"
    (run_id,) = set(airflow.runs()) - before
    assert "p95 120 (limit 80): slow" in airflow.runs()[run_id]["note"]


def test_missing_wrong_and_stale_credentials_are_401_and_nothing_happens(airflow):
    before = set(airflow.runs())
    body = group(firing("e1"))
    wrong = [
        ("alertmanager", body, {}),
        ("alertmanager", body, {"Authorization": "Bearer wrong"}),
        ("alertmanager", body, {"Authorization": f"Basic {airflow.secrets['alert_token']}"}),
        ("generic", body, {}),
        ("generic", body, airflow.bearer()),
        ("generic", *airflow.signed(body, secret="wrong")),
        ("generic", *airflow.signed(body, at=int(time.time()) - 330)),
        ("generic", *airflow.signed(body, at=int(time.time()) + 330)),
        ("grafana", *airflow.signed(body)),  # the other sender's headers
    ]
    data, headers = airflow.signed(body)
    wrong.append(("generic", data + b" ", headers))  # another body under the signature
    for route, sent, given in wrong:
        answer = airflow.post(route, sent, given)
        assert answer.status_code == 401, (route, given, answer.text)
    assert set(airflow.runs()) == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no alerts could be read"),
        ([], "must be a JSON object"),
        ({}, "'alerts' must be a list"),
        ({"alerts": ["x"]}, "list of objects"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"alerts": [{"status": "x", "a": ' + b"[" * 100_000, "nested too deep"),
        (b'{"alerts": [' + b"9" * 5000 + b"]}", "no alerts could be read"),
        ({"alerts": [{"metric": "\ud800", "message": "m", "suggestion": "tune"}]}, "lone surrogates"),
        ({"alerts": [{"metric": "m", "message": "a\0b", "suggestion": "tune"}]}, "neither NUL nor"),
        ({"alerts": [{"metric": "m", "message": "m", "suggestion": "tune", "began": "\udfff"}]}, "lone surrogates"),
        ({"alerts": [{"metric": "m", "message": "m", "suggestion": "\ud800"}]}, "suggestion must be one of"),
        ({"alerts": [{"metric": "m"}]}, "alert 0 lacks message, suggestion"),
        ({"alerts": [{"metric": "m", "message": "m", "suggestion": "dance"}]}, "suggestion must be one of"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_400_that_says_why(airflow, body, words):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    at = str(int(time.time()))
    signature = hmac.new(
        airflow.secrets["alert_secret"].encode(), at.encode() + b":" + data, hashlib.sha256
    ).hexdigest()
    answer = airflow.post("generic", data, {"X-Alert-Signature": signature, "X-Alert-Timestamp": at})
    assert answer.status_code == 400 and words in answer.text and len(answer.text) < 400


def test_numbers_beyond_all_bounds_are_taken_as_none_and_long_texts_are_cut(airflow):
    body = {"metric": "m" * 9000, "message": "m" * 9000, "suggestion": "tune", "value": 10**400, "limit": 1e999}
    data, headers = airflow.signed({"alerts": [{**body, "fingerprint": "f" * 9000, "began": "b" * 9000}]})
    answer = airflow.post("generic", data, headers)
    assert answer.json()["told"] == "a run was made", answer.text
    (told,) = airflow.runs()[answer.json()["run_id"]]["conf"]["alerts"]
    assert told["value"] is told["limit"] is None
    assert [len(told[name]) for name in ("metric", "message", "fingerprint", "began")] == [100, 500, 64, 64]
    data, headers = airflow.signed({"alerts": [{"metric": "m", "message": "m", "suggestion": "x" * 100_000}]})
    assert len(airflow.post("generic", data, headers).text) < 400


@pytest.mark.parametrize("length", ["", "x", "-1", "1e3", "9" * 5000, str(9 * 1024 * 1024)])
def test_a_body_without_a_sound_length_is_not_read(airflow, length):
    parts = urlsplit(airflow.layout.airflow_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        head = f"POST /alerts/alertmanager HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        head += f"Authorization: {airflow.bearer()['Authorization']}\r\n"
        head += f"Content-Length: {length}\r\n\r\n" if length else "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096).decode(errors="replace")
    assert answer.split()[1] in ("400", "413", "422"), answer


def test_what_came_while_no_scheduler_ran_is_taken_up_by_one(airflow):
    """Accepted, kept, acted on later: the run leaves the queue once there is a scheduler."""
    answer = airflow.post("alertmanager", group(firing("f1")), airflow.bearer()).json()
    run_id = answer["run_id"]
    assert airflow.runs()[run_id]["state"] == "queued"
    airflow.start("scheduler", "--skip-serve-logs")
    deadline = time.monotonic() + 120
    while airflow.runs()[run_id]["state"] == "queued" and time.monotonic() < deadline:
        for other in set(airflow.runs()) - {run_id}:  # two at once are allowed: the others make room
            if airflow.runs()[other]["state"] == "running":
                airflow.api.stop_run(DAG, other)
        time.sleep(0.5)
    assert airflow.runs()[run_id]["state"] != "queued"


def test_a_real_alertmanager_starts_one_run(airflow, tmp_path):
    """Alertmanager with the config of include/monitoring, told of an alert; it repeats itself and the run does not."""
    from debian import program

    before = set(airflow.runs())
    config = (ROOT / "include" / "monitoring" / "alertmanager.yml").read_text()
    config = config.replace("http://127.0.0.1:8080", airflow.layout.airflow_url)
    for slow, fast in (
        ("group_wait: 30s", "group_wait: 0s"),
        ("5m", "1s"),
        ("repeat_interval: 12h", "repeat_interval: 2s"),
    ):
        config = config.replace(slow, fast)
    (tmp_path / "alertmanager.yml").write_text(config)
    (tmp_path / "alert_token").write_text(airflow.secrets["alert_token"])
    port = free_port()
    command = [
        program("prometheus-alertmanager", "prometheus-alertmanager"), f"--config.file={tmp_path}/alertmanager.yml",
        f"--storage.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        alert = {
            "labels": {"alertname": "ImagesTooSlow", "redo": "tune", "metric": "request_seconds_p95"},
            "annotations": {"summary": "slow", "value": "3.1", "limit": "2", "window": "15 minutes"},
        }
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                told = httpx.post(f"http://127.0.0.1:{port}/api/v2/alerts", json=[alert], timeout=5, trust_env=False)
                if told.is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
        while not (new := set(airflow.runs()) - before) and time.monotonic() < deadline:
            time.sleep(0.5)
        time.sleep(6)  # it repeats itself every two seconds
        (run_id,) = set(airflow.runs()) - before
        assert new == {run_id}
        assert "request_seconds_p95 3.1 (limit 2), window 15 minutes: slow" in airflow.runs()[run_id]["note"]
    finally:
        process.terminate()
        process.wait(30)
