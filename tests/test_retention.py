"""`mlx-tasks clean`: what is old and needed by nothing goes, what a registered version needs stays, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import orchestration as o
import pytest
from mlflow_server import MlflowServer
from orchestration import node, open_run, workspace

from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.locks import held
from mlx_tasks.retention import clean as cleaning
from mlx_tasks.retention.airflow import airflow_areas, served_copies
from mlx_tasks.retention.objects import checkpoints, depots
from mlx_tasks.retention.plan import seconds
from mlx_tasks.retention.runs import KnownRun
from mlx_tasks.tracking.rest import MlflowRest
from mlx_tasks.workspace.mlflow_parent import end_parent
from mlx_tasks.workspace.outs import locked_outs
from mlx_tasks.workspace.paths import Places

pytest_plugins = ["mlflow_server", "node_world"]


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A registry of its own: a version of another test's checkout would keep the whole store."""
    server = MlflowServer(tmp_path_factory.mktemp("registry"))
    server.start()
    yield server
    server.stop()


def quiet(text: str) -> None:
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def areas(places: Places, remove: bool = False, older_than: str = "0m") -> dict[str, SimpleNamespace]:
    """{kind: what goes by name, what stays by reason}."""
    told = cleaning.clean(places, seconds(older_than), remove, quiet)
    return {one.title: SimpleNamespace(goes=[item.name for item in one.goes], stays=dict(one.stays)) for one in told}


def close(env: dict[str, str], run: dict, locks: dict) -> str:
    """The commit that a run ends with."""
    spec = json.dumps({"run": run, "locks": locks, "succeeded": True})
    done = o.mlx_tasks(env, "close-run", "--spec", "-", stdin=spec)
    assert done.returncode == 0, done.stdout
    return o.result_of(done.stdout)["commit"]


@pytest.fixture
def world(machines, mlflow_server, monkeypatch, tmp_path) -> Iterator[SimpleNamespace]:
    """Two runs with a result each, on a git remote and a store; the first one is a version without an alias."""
    named = {"MLFLOW_TRACKING_URI": mlflow_server.uri, "MLFLOW_EXPERIMENT_NAME": uuid.uuid4().hex}
    env = {**machines[0], **named}
    for key, value in named.items():
        monkeypatch.setenv(key, value)
    rest = MlflowRest(mlflow_server.uri)
    runs, commits = [], []
    for seed, stage in ((1, "validate"), (2, "validate")):
        run = open_run(env, f"run-{seed}-{uuid.uuid4().hex[:6]}", seed=seed)
        code, result, output = node(env, run, stage)
        assert code == 0, output
        runs.append(run)
        commits.append(close(env, run, {stage: result["lock"]}))
        model = tmp_path / "model.txt"
        model.write_text("weights")
        rest.put_artifact(rest.run(run["mlflow_parent"])["info"]["artifact_uri"], "model/weights.txt", model)
    name = f"clean-{uuid.uuid4().hex[:8]}"
    rest.call("POST", "registered-models/create", {"name": name})
    tags = [{"key": "mlx_tasks.commit", "value": commits[0]}, {"key": "mlx_tasks.run", "value": runs[0]["slug"]}]
    source = rest.run(runs[0]["mlflow_parent"])["info"]["artifact_uri"] + "/model"
    made = {"name": name, "source": source, "run_id": runs[0]["mlflow_parent"], "tags": tags}
    rest.call("POST", "model-versions/create", made)
    places = Places(Path(env["ADO_REPOSITORY"]), Path(env["ADO_STATE"]), env["ADO_DVC_REMOTE"], "origin")
    yield SimpleNamespace(
        env=env, places=places, rest=rest, name=name, kept=runs[0], other=runs[1], hub=tmp_path / "hub.git"
    )
    rest.call(
        "DELETE", "registered-models/delete", {"name": name}
    )  # a version of another checkout would keep the store


def hashes(places: Places, run: dict, env: dict[str, str]) -> set[str]:
    """Of a run's outs and of their files."""
    named = set(locked_outs(workspace(env, run)).values())
    for one in [one for one in named if one.endswith(".dir")]:
        listed = json.loads((Path(places.dvc_remote) / "files/md5" / one[:2] / one[2:]).read_text())
        named |= {file["md5"] for file in listed}
    return named


def brought_back(world: SimpleNamespace, folder: Path, remote: Path | str) -> dict[str, bytes]:
    """The files of the registered run's results, from its branch on the hub and a place of artifacts alone."""
    clone = folder / uuid.uuid4().hex
    o.run_git(folder, "clone", "-q", "--branch", world.kept["branch"], str(world.hub), str(clone))
    quiet = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    for command in (["remote", "add", "-d", "kept", str(remote)], ["pull", "validate"]):
        subprocess.run([sys.executable, "-m", "dvc", *command, "-q"], cwd=clone, check=True, env=quiet)
    return files(clone / "work")


def stored(root: Path) -> set[str]:
    return {path.parent.name + path.name for path in root.glob("files/md5/*/*")}


@pytest.mark.e2e
def test_what_nothing_needs_goes_and_a_registered_version_comes_back_to_the_byte(world, tmp_path):
    places, env = world.places, world.env
    made = files(workspace(env, world.kept) / "work")
    needed, other = hashes(places, world.kept, env), hashes(places, world.other, env)
    before = {root: files(root) for root in (places.state, Path(places.dvc_remote), world.hub)}

    told = areas(places)  # it only tells
    for root, content in before.items():
        found = files(root)
        assert {name for name in found.keys() ^ content.keys() if "locks/" not in name} == set()
    assert o.run_git(places.repository, "for-each-ref", "refs/mlx-tasks") == ""
    assert told["branches here"].goes == [f"refs/heads/{world.other['branch']}"]
    assert told["branches here"].stays == {f"registered ({world.name}/1)": 1}
    assert told["artifacts in the store"].stays == {"needed by a run that stays": len(needed)}

    assert areas(places, older_than="1h", remove=True)["branches here"].goes == []  # all of it is younger
    assert areas(places, remove=True)["artifacts in the cache"].goes

    for remote in (places.repository, world.hub):
        assert o.run_git(remote, "branch", "--list", "--format=%(refname:short)", "runs/*").split() == [
            world.kept["branch"]
        ]
    for root in (Path(places.dvc_remote), places.dvc_cache):
        assert stored(root) == needed
        assert not stored(root) & (other - needed)
    assert not world.rest.run_is_active(world.other["mlflow_parent"])
    assert world.rest.run_is_active(world.kept["mlflow_parent"])
    uri = world.rest.run(world.kept["mlflow_parent"])["info"]["artifact_uri"]
    assert world.rest.get_artifact(uri, "model/weights.txt") == b"weights"
    gone = world.rest.run(world.other["mlflow_parent"])["info"]["artifact_uri"]
    assert world.rest.get_artifact(gone, "model/weights.txt") is None
    assert not list(places.workspaces.glob("*"))

    assert brought_back(world, tmp_path, places.dvc_cache) == brought_back(world, tmp_path, places.dvc_remote) == made
    assert all(not one.goes for one in areas(places).values())


@pytest.mark.e2e
def test_a_clean_that_is_killed_anywhere_is_finished_by_the_next(world, tmp_path, monkeypatch):
    places, made = world.places, files(workspace(world.env, world.kept) / "work")
    needed = hashes(places, world.kept, world.env)
    total = sum(len(one.goes) for one in areas(places).values())
    assert total > 8

    class Killed(BaseException):
        pass

    def cut(areas, say):
        items = [item for area in areas for item in area.goes]
        for item in items[: max(1, len(items) // 3)]:
            item.remove()
        raise Killed

    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(cleaning, "_remove", cut)
            with pytest.raises(Killed):
                areas(places, remove=True)
        assert brought_back(world, tmp_path, places.dvc_remote) == made
    areas(places, remove=True)
    assert stored(Path(places.dvc_remote)) == stored(places.dvc_cache) == needed
    assert not world.rest.run_is_active(world.other["mlflow_parent"])


@pytest.mark.e2e
def test_a_run_at_work_is_left_alone_and_so_is_all_that_it_may_take_from_another(world):
    places, env = world.places, world.env
    run = open_run(env, f"busy-{uuid.uuid4().hex[:6]}", seed=3)  # MLflow calls it running
    store = stored(Path(places.dvc_remote))
    told = areas(places, remove=True)
    assert told["branches here"].stays["at work"] == 1 and told["workspaces"].stays == {"at work": 1}
    (why,) = told["artifacts in the store"].stays
    assert why.startswith(f"{run['slug']} is at work") and stored(Path(places.dvc_remote)) == store
    assert workspace(env, run).is_dir() and world.rest.run_is_active(run["mlflow_parent"])
    end_parent(run["mlflow_parent"], True)
    with held(places.lock(run["slug"]), "a node", what="the workspace"):  # a node of it still works here
        assert areas(places)["workspaces"].stays == {"at work": 1}
    areas(places, remove=True)
    assert not workspace(env, run).exists() and not world.rest.run_is_active(run["mlflow_parent"])


@pytest.mark.e2e
def test_a_version_whose_commit_is_nowhere_keeps_the_whole_store(world):
    name = f"lost-{uuid.uuid4().hex[:8]}"
    world.rest.call("POST", "registered-models/create", {"name": name})
    tags = [{"key": "mlx_tasks.commit", "value": "0" * 39 + "1"}, {"key": "mlx_tasks.run", "value": "lost"}]
    source = world.rest.run(world.kept["mlflow_parent"])["info"]["artifact_uri"] + "/model"
    made = {"name": name, "source": source, "run_id": world.kept["mlflow_parent"], "tags": tags}
    world.rest.call("POST", "model-versions/create", made)
    try:
        told = areas(world.places)
        for kind in ("artifacts in the store", "artifacts in the cache", "stage results in the store"):
            assert told[kind].goes == []
            (why,) = told[kind].stays
            assert why.startswith(f"{name}/1 names the commit 0000")
    finally:
        world.rest.call("DELETE", "registered-models/delete", {"name": name})


@pytest.mark.e2e
def test_the_command_only_tells_until_it_is_told_to(world):
    done = o.mlx_tasks(world.env, "clean", "--older-than", "0m")
    assert done.returncode == 0 and "What would go" in done.stdout and "--yes removes" in done.stdout
    told = o.mlx_tasks(world.env, "clean", "--older-than", "0m", "--json").stdout
    assert {one["what"] for one in json.loads(told)} >= {"workspaces", "branches here", "MLflow runs"}
    assert workspace(world.env, world.other).is_dir()
    done = o.mlx_tasks(world.env, "clean", "--older-than", "0m", "--yes")
    assert done.returncode == 0 and "Gone" in done.stdout, done.stdout
    assert not workspace(world.env, world.other).exists()


def test_copies_of_checkpoints_go_with_their_run_and_the_model_that_served_last_stays(tmp_path):
    store, state = tmp_path / "store", tmp_path / "state"
    for run in ("busy", "ended"):
        write(store / "checkpoints" / run / "train" / "objects" / "a", "12345")
    for version in ("1", "2"):
        write(state / "serving" / "models" / "digits" / version / "bundle" / "weights", "12345")
    last = state / "serving" / "models" / "digits" / "2" / "bundle"
    write(state / "serving" / "models" / "last_good.json", json.dumps({"folder": str(last)}))
    places, later = Places(tmp_path, state, str(store)), time.time() + 60
    runs = {"busy": KnownRun("busy", at_work=True)}
    for area, why in (
        (checkpoints(depots(places)[0], runs, later), "at work"),
        (served_copies(places, later), "served last"),
    ):
        assert len(area.goes) == 1 and area.size == 5 and dict(area.stays) == {why: 1}
        for _ in range(2):  # once more does no harm
            area.goes[0].remove()
    assert [path.parent.parent.parent.name for path in store.rglob("a")] == ["busy"]
    assert [path.parent.parent.name for path in state.rglob("weights")] == ["2"]
    assert served_copies(places, 0.0).stays == {"served last": 1}


def test_airflows_logs_go_by_run_and_by_day_but_not_the_day_that_is_written(tmp_path):
    logs = tmp_path / "airflow" / "logs"
    for name in (
        "dag_id=a/run_id=b/task_id=c/attempt=1.log",
        "dag_processor/2026-01-01/x.log",
        "dag_processor/2026-01-02/x.log",
    ):
        write(logs / name, "12345")
    (logs / "dag_processor" / "latest").symlink_to(logs / "dag_processor" / "2026-01-02")
    places, later = Places(tmp_path, tmp_path, str(tmp_path / "store")), time.time() + 60
    assert airflow_areas(places, later, "") == []  # there is no stack here
    write(tmp_path / "airflow" / "airflow.db", "")
    assert [dict(area.stays) for area in airflow_areas(places, 0.0, "")] == [{}, {"young": 2}]
    assert [dict(area.stays) for area in airflow_areas(places, later, "a run is at work")][1] == {"a run is at work": 2}
    (_, area) = airflow_areas(places, later, "")
    for item in area.goes:
        item.remove()
    assert [path.parent.name for path in logs.rglob("*.log")] == ["2026-01-02"]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_registry_nothing_is_cleaned(env):
    done = o.mlx_tasks({**env, "MLFLOW_TRACKING_URI": ""}, "clean", "--yes")
    assert done.returncode == ExitCode.BAD_INPUT and "only the registry knows" in done.stdout
    done = o.mlx_tasks({**env, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "clean", "--yes")
    assert done.returncode == ExitCode.UNAVAILABLE


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "1w", "", "1d2h"])
def test_an_age_of_another_form_is_refused(text):
    with pytest.raises(DataError, match="as 30d, 12h or 90m"):
        seconds(text)


def test_ages():
    assert [seconds(text) for text in ("30d", "12h", "90m", "0m")] == [2592000, 43200, 5400, 0]
