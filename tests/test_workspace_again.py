"""Runs that begin again at a stage, from a champion's lineage, and alerts that ask for it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from types import SimpleNamespace

import orchestration as o
import pytest
import yaml
from orchestration import node, open_run, workspace

from mlx_tasks.errors import DataError

pytest_plugins = ["mlflow_server", "node_world"]


@pytest.fixture
def champion(env, mlflow_server):
    """A run whose first two stages ran, and which a registered champion names as its lineage."""
    from mlx_tasks.tracking.rest import MlflowRest

    env["MLFLOW_TRACKING_URI"] = mlflow_server.uri
    run = open_run(env, f"first-{uuid.uuid4().hex[:8]}", overrides={"train.steps": 77})
    code, validated, told = node(env, run, "validate")
    assert code == 0, told
    code, trained, _ = node(env, run, "train", locks={"validate": validated["lock"]}, commit="after")
    assert code == 0 and trained["status"] == "ran"
    name = f"again-{uuid.uuid4().hex[:8]}"
    rest = MlflowRest(mlflow_server.uri)
    rest.call("POST", "registered-models/create", {"name": name})
    tags = [{"key": "mlx_tasks.commit", "value": trained["commit"]}, {"key": "mlx_tasks.run", "value": run["slug"]}]
    source = rest.run(run["mlflow_parent"])["info"]["artifact_uri"] + "/nothing"
    made = {"name": name, "source": source, "run_id": run["mlflow_parent"], "tags": tags}
    rest.call("POST", "model-versions/create", made)
    rest.call("POST", "registered-models/alias", {"name": name, "alias": "champion", "version": "1"})
    return SimpleNamespace(run=run, name=name, commit=trained["commit"], repository=Path(env["ADO_REPOSITORY"]))


@pytest.mark.e2e
def test_a_run_that_begins_again_keeps_all_before_its_stage_and_draws_anew_from_there(env, champion):
    edited = champion.repository / "mlx_tasks" / "training" / "later.py"
    edited.write_text("# an edit since then: the lineage has its own code\n")
    try:
        form = {"start_from": "distill", "begin_with": f"{champion.name}@champion", "reason": "quality 2 (limit 1)"}
        again = open_run(env, f"again-{champion.run['slug']}", **form)
        place = workspace(env, again)
        params = yaml.safe_load((place / "params.yaml").read_text())
        assert params["redo"] == {"train": 0, "distill": 1, "search": 1, "tune": 1} and params["train"]["steps"] == 77
        assert not (place / "mlx_tasks" / "training" / "later.py").exists()
        assert o.run_git(champion.repository, "rev-parse", f"{again['branch']}^").strip() == champion.commit
        assert any("started because: quality 2" in note for note in again["notes"])
        assert any(f"models:/{champion.name}/1" in note for note in again["notes"])
        code, validated, _ = node(env, again, "validate")
        assert code == 0 and validated["status"] == "cached"
        locks = {"validate": validated["lock"]}
        code, trained, _ = node(env, again, "train", locks=locks)
        assert code == 0 and trained["status"] == "cached"
        code, distilled, _ = node(env, again, "distill", locks=locks | {"train": trained["lock"]})
        assert code == 0 and distilled["status"] == "ran"
        made = json.loads((place / "work" / "students" / "data.json").read_text())
        assert made["seed"] == 7919
    finally:
        edited.unlink()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"start_from": "evaluate"}, "start_from: one of tune, distill, train"),
        ({"start_from": "tune", "begin_with": "nobody@champion"}, "no version of model 'nobody'"),
        ({"start_from": "tune", "begin_with": "digits"}, "NAME@ALIAS or NAME/VERSION"),
    ],
)
def test_a_beginning_that_is_nowhere_is_refused_before_a_workspace_stands(env, champion, form, words):
    done = o.mlx_tasks(env, "open-run", "--spec", "-", stdin=json.dumps({"run_id": "nowhere", "form": form}))
    assert done.returncode == 10 and words in done.stdout
    assert not list(Path(env["ADO_STATE"]).glob("workspaces/nowhere*"))


def test_alerts_fill_the_form():
    from mlx_tasks.workspace.again import with_alerts

    def told(metric, suggestion, status="new", value=2.0, **more):
        return {
            "metric": metric, "value": value, "limit": 1.0, "message": "m", "suggestion": suggestion, "status": status
        } | more  # fmt: skip

    form = {"preset": "demo", "start_from": None, "reason": "asked"}
    alerts = [
        told("latency", "tune", begin_with="digits/3"),
        told("quality", "distill", begin_with="digits/4"),
        told("drift", "train", "repeated"),
    ]
    filled = with_alerts({**form, "alerts": alerts})
    assert (filled["start_from"], filled["begin_with"], filled["preset"]) == ("distill", "digits/4", "demo")
    assert filled["reason"] == "asked; latency 2 (limit 1): m; quality 2 (limit 1): m"
    whole = with_alerts({"alerts": [told("data", "validate", value=None)]})
    assert whole["start_from"] == "" and whole["reason"] == "data (limit 1): m" and whole["begin_with"] is None
    for wrong in (["quality"], [{"metric": "quality"}]):
        with pytest.raises(DataError, match="each must hold metric, message"):
            with_alerts({"alerts": wrong})
    for none in ([], None, [told("drift", "train", "repeated")]):
        assert with_alerts({**form, "alerts": none}) == {**form, "alerts": none}
