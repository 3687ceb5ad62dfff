"""Facts about deployments: a canary refuses what draws otherwise, a swap can be taken back, and the DAG says why."""

import json
import shutil
import uuid
from datetime import UTC, datetime
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from registry_workspace import make_workspace, run_register
from serving_world import Server, bundle_with_reference

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.models.digests import write_digests
from mlx_tasks.registry.mlflow_registry import DIGEST_TAG, Registry
from mlx_tasks.registry.names import CHAMPION, SERVING
from mlx_tasks.serving import deploy
from mlx_tasks.serving.process import CommandFailed, run_command

pytest_plugins = ["mlflow_server"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("first") / "digits")


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("second") / "digits", seed=8)


def test_a_canary_passes_what_was_registered_and_refuses_what_draws_otherwise(first, second, tmp_path):
    found = deploy.canary(first, images=60)
    assert found.passed and min(found.measured["p_values"].values()) > 0.001, found
    shutil.copytree(first, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "reference")
    shutil.copytree(second / "reference", tmp_path / "mixed" / "reference")
    write_digests(tmp_path / "mixed")
    refused = deploy.canary(tmp_path / "mixed", images=60)
    assert not refused.passed and any("drift: " in reason for reason in refused.reasons)


def test_a_canary_refuses_a_bundle_that_gives_no_images(first, monkeypatch):
    import mlx_tasks.samplers.bundle_sampler as module

    def broken(bundle, noise, *arguments, **options):
        return SimpleNamespace(images=noise * float("nan"))

    monkeypatch.setattr(module, "sample_bundle", broken)
    refused = deploy.canary(first, images=4)
    assert not refused.passed and "not finite" in refused.reasons[0]


def test_a_failed_command_tells_its_code_and_last_words(tmp_path):
    with pytest.raises(CommandFailed, match=r"exit code 10: .*digests\.json") as caught:
        run_command("deploy", "canary", "--bundle", str(tmp_path))
    assert caught.value.code == 10


# ---- through a real registry and a real server


@pytest.fixture
def two_versions(tracked, tmp_path, monkeypatch):
    """(registry, name): two versions of a model of this test's own, the second of which is champion."""
    monkeypatch.setenv("ADO_STATE", str(tmp_path / "state"))
    name = f"served-{uuid.uuid4().hex[:6]}"
    config = Config(gate={"limits": []}, register={"model_name": name})
    for run, weights in (("a", 3), ("b", 6)):
        monkeypatch.setenv("MLX_TASKS_RUN_ID", run)
        run_register(make_workspace(tmp_path / run, 0.05, weights=weights), config)
    return Registry(tracked.uri), name


@pytest.mark.e2e
def test_swap_and_roll_back_leave_what_served_before(two_versions):
    registry, name = two_versions

    def serving():
        found = registry.by_alias(name, SERVING)
        return found.version if found else ""

    assert deploy.roll_back(registry, name) == ""
    with pytest.raises(DataError, match=f"nothing of {name} serves"):
        deploy.verify(registry, name)
    assert deploy.swap(registry, name, "1", "run-1").before == ""
    two = deploy.swap(registry, name, "2", "run-2")
    assert deploy.swap(registry, name, "2", "run-2") == two and two.before == "1"  # a retry keeps the way back
    assert deploy.verify(registry, name)["version"] == "2" == serving()
    assert deploy.roll_back(registry, name, "run-1") == "2"  # another run's swap is left alone
    assert deploy.roll_back(registry, name, "run-2") == "1" == serving()
    assert deploy.roll_back(registry, name, "run-2") == "1"  # once is enough
    deploy.swap(registry, name, "1", "run-3")  # it serves already: nothing to undo
    assert deploy.roll_back(registry, name, "run-3") == "1"
    # A crash between the note and the alias: the retry still knows what served.
    deploy._tell(registry, deploy.Deployed(name, "2", "1", "run-4"))
    assert deploy.roll_back(registry, name, "run-4") == "1" == serving()
    assert deploy.swap(registry, name, "2", "run-4").before == "1"
    assert deploy.roll_back(registry, name, "run-4") == "1"


@pytest.mark.e2e
def test_a_server_follows_the_alias_and_outlives_the_registry(two_versions, tracked, tmp_path):
    registry, name = two_versions
    registry.set_alias(name, CHAMPION, "1")
    store = tmp_path / "store"
    running = Server("--model", f"{name}@champion", "--store", str(store))
    try:
        running.wait_for("version", "1")
        image = running.draw(prompt="one", seed=5).json()["data"][0]["b64_json"]
        found = running.http.get("/v1/versions").json()["data"]
        assert [(one["version"], one["aliases"]) for one in found] == [("2", ["challenger"]), ("1", ["champion"])]
        other = running.draw(prompt="one", seed=5, model=f"{name}/2").json()
        assert other["model"] == f"{name}/2" and other["data"][0]["b64_json"] != image
        assert running.draw(prompt="one", model=f"{name}@challenger").json()["model"] == f"{name}/2"
        assert running.serving()["version"] == "1"
        assert "no version '7'" in running.draw(prompt="one", model=f"{name}/7").json()["error"]["message"]

        registry.set_alias(name, CHAMPION, "2")
        running.wait_for("version", "2")
        registry.set_alias(name, CHAMPION, "1")
        running.wait_for("version", "1")

        (store / name / "1" / "sampler.json").write_text("{}")  # a copy that rotted on this disk
        running.process.kill()
        running.process.wait()
        running.process.stderr.close()
        running.start()
        running.wait_for("version", "1")
        assert running.draw(prompt="one", seed=5).json()["data"][0]["b64_json"] == image

        tracked.kill()
        while not running.http.get("/readyz").json()["problem"]:
            pass
        assert running.draw(prompt="one", seed=5).json()["data"][0]["b64_json"] == image
        running.process.kill()
        running.process.wait()
        running.process.stderr.close()
        running.start()
        running.wait_for("version", "1")
        assert running.draw(prompt="one", seed=5).json()["data"][0]["b64_json"] == image
        tracked.start()
        registry.set_alias(name, CHAMPION, "2")
        running.wait_for("version", "2")
    finally:
        running.stop()
        if tracked.process.poll() is not None:
            tracked.start()


@pytest.mark.e2e
def test_two_servers_share_a_store_and_each_starts_with_its_own_version_while_the_registry_is_away(
    two_versions, tracked, tmp_path
):
    registry, name = two_versions
    store = tmp_path / "store"
    registry.set_alias(name, CHAMPION, "2")
    registry.set_alias(name, SERVING, "1")
    servers = [Server("--model", f"{name}@{alias}", "--store", str(store)) for alias in (CHAMPION, SERVING)]
    try:
        for running, version in zip(servers, "21", strict=True):
            running.wait_for("version", version)
        assert sorted(path.name for path in (store / name).glob("[0-9]*")) == ["1", "2"]
        tracked.kill()
        for running in servers:
            running.process.kill()
            running.process.wait()
            running.process.stderr.close()
        for running in servers:
            running.start()
        for running, version in zip(servers, "21", strict=True):
            running.wait_for("version", version)
    finally:
        for running in servers:
            running.stop()
        tracked.start()


@pytest.mark.e2e
def test_a_version_whose_artifacts_were_changed_does_not_serve(two_versions, tracked, tmp_path):
    """Its files and their digests were changed together, which only the registered digest can tell."""
    registry, name = two_versions
    deploy.swap(registry, name, "1", "run-1")
    running = Server("--model", f"{name}@serving", "--store", str(tmp_path / "store"))
    try:
        running.wait_for("version", "1")
        changed = registry.resolve(f"{name}/2")
        (folder,) = [
            path.parent
            for path in (tracked.folder / "artifacts").rglob("sampler.json")
            if changed.model_id in path.as_posix()
        ]
        sampler = folder / "sampler.json"
        told = json.loads(sampler.read_text())
        sampler.write_text(json.dumps(told | {"class_names": told["class_names"][::-1]}))
        write_digests(folder)
        deploy.swap(registry, name, "2", "run-2")
        with pytest.raises(DataError, match="its artifacts were changed"):
            deploy.verify(registry, name)
        with pytest.raises(UnavailableError, match="its artifacts were changed"):
            deploy._Service(running.url, None).wait_for(changed.tags[DIGEST_TAG], 3.0)
        assert list(running.http.get("/v1/models").json()["refused"]) == [f"{name}/2"]
        assert list(running.http.get("/readyz").json()["refused"]) == [f"{name}/2"]
        assert running.serving()["version"] == "1"
    finally:
        running.stop()


class Instance:
    """What a task sees of Airflow's XCom."""

    def __init__(self):
        self.values = {}

    def of(self, task):
        def push(key, value):
            self.values[task, key] = value

        def pull(task_ids, key="return_value"):
            return (
                [self.values.get((one, key)) for one in task_ids]
                if isinstance(task_ids, list)
                else self.values.get((task_ids, key))
            )

        return SimpleNamespace(xcom_push=push, xcom_pull=pull)


@pytest.mark.e2e
def test_the_dags_steps_put_a_champion_into_service_and_take_it_back(two_versions, tmp_path, repository):
    registry, name = two_versions
    dag = load_dag(repository, "deploy_champion")
    calls = {name: dag.get_task(name).python_callable for name in ("canary", "swap", "verify", "roll_back")}
    form = {"model": f"{name}@champion", "url": ""}
    event = SimpleNamespace(extra={"model": name, "version": "1"}, timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    told = Instance()
    found = calls["canary"](params=form, triggering_asset_events={"champion_model": [event]}, ti=told.of("canary"))
    assert (found["name"], found["version"]) == (name, "1")
    calls["swap"](found, run_id="run-1", ti=told.of("swap"))
    running = Server("--model", f"{name}@serving", "--store", str(tmp_path / "store"))
    try:
        running.wait_for("version", "1")
        told = Instance()
        found = calls["canary"](params=form, ti=told.of("canary"))
        told.values["canary", "return_value"] = found
        swapped = calls["swap"](found, run_id="run-2", ti=told.of("swap"))
        verified = calls["verify"](swapped, params=form | {"url": running.url}, ti=told.of("verify"))
        assert verified["version"] == "2" == running.serving()["version"]

        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        with pytest.raises(AirflowException, match=r"127\.0\.0\.1:9 does not serve"):
            step = load_dag_module(repository, "deploy_champion").step
            step("verify", "--model", name, "--url", "http://127.0.0.1:9", "--patience", "0.1", ti=told.of("verify"))
        with pytest.raises(AirflowFailException, match=r"does not serve \(.*127\.0\.0\.1:9.*serving now: served-"):
            calls["roll_back"](params=form, run_id="run-2", ti=told.of("roll_back"))
        running.wait_for("version", "1")
        assert registry.by_alias(name, SERVING).version == "1"
    finally:
        running.stop()


@pytest.mark.e2e
def test_a_service_that_draws_other_images_does_not_verify(two_versions, tmp_path, monkeypatch):
    """The digest is right and the pixels are not: a server whose device computes nonsense."""
    registry, name = two_versions
    deploy.swap(registry, name, "2", "run-2")
    running = Server("--model", f"{name}@serving", "--store", str(tmp_path / "store"))
    try:
        running.wait_for("version", "2")
        draw = deploy._Service.draw

        def distorted(self, body):
            return np.clip(draw(self, body).astype(int) + 9, 0, 255).astype(np.uint8)

        monkeypatch.setattr(deploy._Service, "draw", distorted)
        with pytest.raises(DataError, match="9 grey levels away, at most 2"):
            deploy.verify(registry, name, running.url)
        monkeypatch.setattr(deploy._Service, "draw", draw)
        assert deploy.verify(registry, name, running.url)["server"] == running.url
    finally:
        running.stop()


# ---- the DAG file


def load_dag_module(repository, name):
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"dag_{name}", repository / "dags" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_dag(repository, name):
    return getattr(load_dag_module(repository, name), name)()


def test_the_newest_promotion_is_deployed_in_whatever_order_airflow_gives_them(repository):
    """A DAG that was paused is given every event since its last run."""
    reference = load_dag_module(repository, "deploy_champion").reference
    day = lambda number: datetime(2026, 1, number, tzinfo=UTC)  # noqa: E731
    events = [
        SimpleNamespace(extra={"model": "digits", "version": str(number)}, timestamp=day(number))
        for number in (2, 3, 1)
    ]
    for order in permutations([*events, SimpleNamespace(extra=None, timestamp=day(4))]):
        assert reference({"model": "form@champion"}, {"champion_model": order}) == "digits/3"
    assert reference({"model": "form@champion"}, {}) == "form@champion" == reference({"model": "form@champion"}, None)


def test_deploy_runs_its_steps_in_order_and_rolls_back_only_on_failure(repository):
    dag = load_dag(repository, "deploy_champion")
    order = {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
    assert order == {"canary": ["swap"], "swap": ["verify"], "verify": ["roll_back"], "roll_back": []}
    assert dag.get_task("roll_back").trigger_rule == "one_failed"
