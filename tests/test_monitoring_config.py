"""Facts about include/monitoring: the real programs take it, its rules fire when they should, and figures exist."""

import json
import re
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml
from debian import program
from ports import free_port
from serving_world import Server, bundle_with_reference

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "include" / "monitoring"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server("--bundle", str(bundle_with_reference(tmp_path_factory.mktemp("watched") / "digits")))
    running.wait()
    assert running.draw(prompt="one", n=3).status_code == 200
    yield running
    running.stop()


def test_the_programs_take_their_configs(tmp_path):
    run(program("promtool", "prometheus"), "check", "config", str(INCLUDE / "prometheus.yml"))
    for name in ("alertmanager.yml", "alert_token"):
        (tmp_path / name).write_text((INCLUDE / name).read_text() if name.endswith("yml") else "token")
    run(program("amtool", "prometheus-alertmanager"), "check-config", str(tmp_path / "alertmanager.yml"))


def test_the_rules_fire_when_they_should(tmp_path):
    text = (ROOT / "tests" / "prometheus_rules_test.yml").read_text().replace("RULES", str(INCLUDE / "rules.yml"))
    (tmp_path / "test.yml").write_text(text)
    assert "SUCCESS" in run(program("promtool", "prometheus"), "test", "rules", str(tmp_path / "test.yml"))


def used_figures():
    """Names of the figures that rules and dashboard ask for, those of recording rules left out."""
    rules = [rule for group in yaml.safe_load((INCLUDE / "rules.yml").read_text())["groups"] for rule in group["rules"]]
    texts = [rule["expr"] for rule in rules]
    dashboard = json.loads((INCLUDE / "grafana-dashboard.json").read_text())
    texts += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return {name for text in texts for name in re.findall(r"\bdiffusion_[a-z_]+\b", text)}


def test_every_figure_that_is_asked_for_is_there(server):
    given = set(re.findall(r"^(diffusion_[a-z_]+)", server.http.get("/metrics").text, re.MULTILINE))
    assert used_figures() and used_figures() <= given, used_figures() - given


def test_the_dashboard_says_what_each_unit_is():
    dashboard = json.loads((INCLUDE / "grafana-dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) >= 8
    for panel in dashboard["panels"]:
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_prometheus_reads_the_server_and_its_alert_reaches_alertmanager(server, tmp_path):
    """The rule for a server that is gone, made impatient; both programs for real."""
    prometheus_port, alertmanager_port = free_port(), free_port()
    rules = (INCLUDE / "rules.yml").read_text().replace("for: 2m", "for: 1s")
    (tmp_path / "rules.yml").write_text(rules)
    config = yaml.safe_load((INCLUDE / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    target = server.url.removeprefix("http://")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target, f"127.0.0.1:{free_port()}"]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager_port}"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "alertmanager.yml").write_text((INCLUDE / "alertmanager.yml").read_text())
    (tmp_path / "alert_token").write_text("token")
    commands = [
        [program("prometheus", "prometheus"), f"--config.file={tmp_path}/prometheus.yml",
         f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{prometheus_port}"],
        [program("prometheus-alertmanager", "prometheus-alertmanager"), f"--config.file={tmp_path}/alertmanager.yml",
         f"--storage.path={tmp_path}/am", f"--web.listen-address=127.0.0.1:{alertmanager_port}",
         "--cluster.listen-address="],
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        running = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
    try:
        deadline, found, up = time.monotonic() + 60, [], []
        while time.monotonic() < deadline and not (found and up):
            time.sleep(0.5)
            try:
                query = {"query": f'diffusion_ready{{instance="{target}"}}'}
                told = httpx.get(
                    f"http://127.0.0.1:{prometheus_port}/api/v1/query", params=query, trust_env=False
                ).json()
                up = told["data"]["result"]
                found = httpx.get(f"http://127.0.0.1:{alertmanager_port}/api/v2/alerts", trust_env=False).json()
            except (httpx.TransportError, ValueError, KeyError):
                continue
        assert up and up[0]["value"][1] == "1", (tmp_path / "log").read_text()[-2000:]
        assert [alert["labels"]["alertname"] for alert in found] == ["NoModelReady"]
        assert found[0]["labels"]["instance"] != target and "draws nothing" in found[0]["annotations"]["summary"]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)
