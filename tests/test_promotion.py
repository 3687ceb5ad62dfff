"""Facts about the title of champion and the record of who gave it, on a real registry."""

import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from registry_workspace import make_workspace, read_verdict, run_register

from mlx_tasks.cli import main
from mlx_tasks.config import Config
from mlx_tasks.errors import DataError, GateRefused
from mlx_tasks.registry import promotion
from mlx_tasks.registry.history import history, record
from mlx_tasks.registry.mlflow_registry import Registry
from mlx_tasks.registry.names import CHAMPION
from mlx_tasks.registry.promotion import promote
from mlx_tasks.serving import deploy
from mlx_tasks.stages import register as stage
from mlx_tasks.tracking.rest import MlflowRest

pytest_plugins = ["mlflow_server"]
pytestmark = pytest.mark.e2e


@pytest.fixture
def six(tracked):
    """(registry, a model's six versions, each of a run of its own); nobody has the title."""
    rest, registry = MlflowRest(tracked.uri), Registry(tracked.uri)
    name = f"title-{uuid.uuid4().hex[:6]}"
    rest.call("POST", "registered-models/create", {"name": name})
    experiment = rest.experiment("titles")
    for number in range(6):
        run_id = rest.create_run(experiment, f"run {number}", {})
        source = f"{rest.run(run_id)['info']['artifact_uri']}/model"
        rest.call("POST", "model-versions/create", {"name": name, "source": source, "run_id": run_id})
    return registry, sorted(registry.versions(name), key=lambda one: int(one.version))


def champion(registry, name):
    found = registry.by_alias(name, CHAMPION)
    return found.version if found else ""


def test_of_runs_that_were_judged_against_one_champion_one_has_the_title(six, tracked):
    registry, (first, *others) = six
    assert promote(registry, first, None) is None and champion(registry, first.name) == "1"
    registries = [Registry(tracked.uri) for _ in others]
    with ThreadPoolExecutor(len(others)) as pool:
        told = list(pool.map(lambda pair: promote(pair[0], pair[1], first), zip(registries, others, strict=True)))
    (winner,) = [one.version for one, faster in zip(others, told, strict=True) if faster is None]
    assert champion(registry, first.name) == winner
    assert {faster for faster in told if faster is not None} == {winner}
    assert promote(registry, first, None) == winner  # judged against nobody, which is long past


def test_the_first_champion_is_one_too(six, tracked):
    registry, versions = six
    registries = [Registry(tracked.uri) for _ in versions]
    with ThreadPoolExecutor(len(versions)) as pool:
        told = list(pool.map(lambda pair: promote(*pair, None), zip(registries, versions, strict=True)))
    assert told.count(None) == 1 and champion(registry, versions[0].name) == versions[told.index(None)].version


def test_a_winner_that_died_before_the_alias_moved_is_helped(six, monkeypatch):
    registry, (first, second, third, *_) = six
    promote(registry, first, None)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_alias", lambda *_: (_ for _ in ()).throw(RuntimeError("the machine went down")))
        with pytest.raises(RuntimeError):
            promote(registry, second, first)
    assert champion(registry, first.name) == "1"
    assert promote(registry, third, first) == "2" == champion(registry, first.name)
    assert promote(registry, second, first) is None  # its retry finds the title
    assert promote(registry, third, registry.by_alias(first.name, CHAMPION)) is None


def test_a_title_taken_back_by_hand_can_be_won_again(six):
    registry, (first, second, third, *_) = six
    promote(registry, first, None)
    promote(registry, second, first)
    registry.set_alias(first.name, CHAMPION, "1")
    assert promote(registry, third, first) is None and champion(registry, first.name) == "3"
    registry.delete_alias(first.name, CHAMPION)
    assert promote(registry, second, None) is None and champion(registry, first.name) == "2"


def test_the_slower_of_two_runs_is_judged_again_and_says_who_was_faster(tracked, tmp_path, monkeypatch):
    """Between its last look and the title another run, better than it, becomes champion."""
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "a")
    config = Config(gate={"limits": []}, register={"model_name": "raced"})
    run_register(make_workspace(tmp_path / "a", 0.05), config)
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "b")
    silent = Config(gate={"limits": [], "promote": False}, register={"model_name": "raced"})
    run_register(make_workspace(tmp_path / "b", 0.01, weights=4), silent)
    registry, real = Registry(tracked.uri), promotion.promote

    def others_first(registry, version, against):
        if champion(registry, "raced") == "1":
            assert real(registry, registry.resolve("raced/2"), against) is None
        return real(registry, version, against)

    monkeypatch.setattr(stage, "promote", others_first)
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "c")
    with pytest.raises(GateRefused, match="worse than champion version 2"):
        run_register(make_workspace(tmp_path / "c", 0.05, weights=5), config)
    assert champion(registry, "raced") == "2" and not read_verdict(tmp_path / "c")["promoted"]

    monkeypatch.setenv("MLX_TASKS_RUN_ID", "d")
    registry.set_alias("raced", CHAMPION, "1")
    verdict = run_register(make_workspace(tmp_path / "d", 0.005, weights=6), config)  # better than the faster one too
    assert verdict["promoted"] and champion(registry, "raced") == "4"


def test_every_promotion_and_deployment_is_told_by_the_command(tracked, tmp_path, monkeypatch, capsys):
    name, registry = "told", Registry(tracked.uri)
    config = Config(gate={"limits": []}, register={"model_name": name})
    for run, weights in (("run-a", 3), ("run-b", 6)):
        monkeypatch.setenv("MLX_TASKS_RUN_ID", run)
        run_register(make_workspace(tmp_path / run, 0.05, weights=weights), config)
    run_register(tmp_path / "run-b", config)  # a retry adds nothing
    deploy.swap(registry, name, "1", "deploy-1")
    deploy.swap(registry, name, "2", "deploy-2", why="asked by the owner")
    deploy.swap(registry, name, "2", "deploy-2", why="asked by the owner")
    deploy.roll_back(registry, name, "deploy-2", why="verify failed")
    told = [(one.what, one.version, one.before, one.run) for one in history(registry, name)]
    assert told == [
        ("promoted", "1", "", "run-a"),
        ("promoted", "2", "1", "run-b"),
        ("deployed", "1", "", "deploy-1"),
        ("deployed", "2", "1", "deploy-2"),
        ("rolled back", "2", "2", "deploy-2"),
    ]
    events = history(registry, name)
    assert "frechet_distance 0.05" in events[0].why and events[3].why == "asked by the owner"
    assert events[4].why == "verify failed; serving now: version 1"
    assert all("@" in event.who and event.at.endswith("+00:00") for event in events)

    registry.set_version_tag(name, "1", "mlx_tasks.event.damaged", "{")
    capsys.readouterr()
    assert main(["history", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "promoted: version 2 after version 1" in lines[2] and "run run-b" in lines[2] and len(lines) == 10
    assert main(["history", name, "--json"]) == 0
    assert [one["what"] for one in json.loads(capsys.readouterr().out)][-1] == "rolled back"
    with pytest.raises(DataError, match="no model 'nobody'"):
        registry.aliases("nobody")
    assert main(["history", "nobody"]) == 10


def test_what_is_done_by_hand_is_an_entry_each_time(six):
    registry, (first, *_) = six
    for _ in range(2):
        record(registry, first.name, "1", "deployed", why="x" * 9000)
    assert [len(event.why) for event in history(registry, first.name)] == [2000, 2000]
