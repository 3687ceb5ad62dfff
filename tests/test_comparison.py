"""Comparing runs: from workspaces and from commits through a real DVC, with the numbers that DVC shows itself."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from registry_workspace import make_workspace, run_register

from mlx_tasks.comparison.compare import compare
from mlx_tasks.comparison.earlier import read_comparison
from mlx_tasks.comparison.page import render_page
from mlx_tasks.comparison.records import SCORES, RunRecord, flat, load_record
from mlx_tasks.config import Config
from mlx_tasks.errors import DataError
from mlx_tasks.registry.mlflow_registry import Registry
from mlx_tasks.workspace.paths import Places

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["mlflow_server"]

SETUP = {
    "dataset": "f00d",
    "samples": 256,
    "resolution": 16,
    "channels": 1,
    "classes": ["a", "b"],
    "feature_space": {"name": "random_conv", "seed": 0, "dimension": 64},
    "test_images": 400,
    "latency_batch": 16,
    "hardware": {"chip": "M9", "kind": "metal", "threads": 1},
}


def estimate(value, arm):
    return {"value": value, "low": value - arm, "high": value + arm}


def row(name, kind, distance, latency, nfe=4, **more):
    metrics = {
        "frechet_distance": estimate(distance, 0.02),
        "recall": estimate(0.8, 0.05),
        "latency_ms": estimate(latency or 0.0, 0.1),
        "c2st_p_value": {"value": 0.1, "low": None, "high": None},
    }
    shown = {"candidate": name, "kind": kind, "refused": "", "nfe": nfe, "latency_ms": latency, "size_mb": 1.5}
    per_class = {"a": {"kernel_distance": estimate(distance / 10, 0.001), "count": 9}}
    return shown | {"parameters": 7, "metrics": metrics, "per_class": per_class} | more


def scores(distance, latency=9.0, **setup):
    rows = [row("reference-real", "reference", 0.03, None, 0), row("teacher", "teacher", 0.05, 50.0, 16)]
    rows.append(row("student", "student", distance, latency))
    winner = {"candidate": "student", "rule": "the fastest of the good"}
    return {"rows": rows, "winner": winner, "teacher": "teacher", "setup": {**SETUP, **setup}, "sanity": {}}


def record(name, distance, params=None, latency=9.0, **setup):
    return RunRecord(name, "made here", flat(params or {}), scores(distance, latency, **setup))


def word(found, metric, run=1):
    return next(m for m in found["metrics"] if m["metric"] == metric)["runs"][run]["word"]


def test_words_follow_the_intervals_and_the_direction():
    found = compare([record("one", 0.10), record("two", 0.05, latency=5.0), record("three", 0.11)])
    assert word(found, "frechet_distance") == "better" and word(found, "latency_ms") == "better"
    assert word(found, "frechet_distance", 2) == word(found, "recall") == "inside the noise"
    assert word(found, "c2st_p_value") == "no interval"
    other = compare([record("one", 0.05), record("two", 0.10)])
    assert word(other, "frechet_distance") == "worse"


def test_runs_measured_under_other_conditions_are_not_compared_and_the_reason_is_said():
    found = compare([record("one", 0.1), record("two", 0.01, dataset="beef", samples=100)])
    cell = next(m for m in found["metrics"] if m["metric"] == "frechet_distance")["runs"][1]
    assert (cell["word"], cell["why"], cell["difference"]) == ("not comparable", "other dataset, samples", None)
    slower = compare([record("one", 0.1), record("two", 0.1, hardware={"chip": "M1", "kind": "metal", "threads": 1})])
    assert word(slower, "latency_ms") == "not comparable" and word(slower, "recall") == "inside the noise"


def test_a_metric_that_failed_the_ladder_is_not_trusted():
    broken = record("two", 0.01)
    broken.scores["sanity"]["frechet_distance"] = {"trusted": False, "broken": ["x"]}
    assert word(compare([record("one", 0.1), broken]), "frechet_distance") == "not trusted"


def test_what_changed_in_params_and_data_is_listed_with_each_value():
    a, b = {"train": {"steps": 10, "rate": 0.1}, "seed": 0}, {"train": {"steps": 20, "rate": 0.1}, "gate": {"on": True}}
    found = compare([record("one", 0.1, a), record("two", 0.1, b, dataset="beef")])
    assert {r["key"]: r["values"] for r in found["params"]} == {
        "train.steps": [10, 20],
        "seed": [0, None],
        "gate.on": [None, True],
    }
    assert found["data"] == [{"key": "fingerprint", "values": ["f00d", "beef"]}]


def test_the_front_over_runs_holds_what_no_candidate_of_any_run_beats():
    found = compare([record("one", 0.10, latency=9.0), record("two", 0.08, latency=9.5)])
    assert found["pareto"] == [["one", "teacher"], ["one", "student"], ["two", "teacher"], ["two", "student"]]
    better = compare([record("one", 0.10), record("two", 0.04, latency=5.0)])
    assert better["pareto"] == [["two", "student"]]


def test_the_page_says_all_of_it_and_fetches_nothing():
    records = [record("one", 0.10, {"seed": 0}), record("two", 0.05, {"seed": 1})]
    page = render_page(compare(records), [None, None])
    for text in ("✓ better", "inside the noise", "<code>seed</code>", "Its pictures are not kept", "By class"):
        assert text in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    with pytest.raises(DataError, match="at least two runs, got 1"):
        compare(records[:1])


def run(folder, *command):
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository with two commits whose scores lie in DVC's cache only."""
    root = tmp_path_factory.mktemp("repository")
    dvc = [sys.executable, "-m", "dvc"]
    run(root, "git", "init", "-q")
    run(root, "git", "config", "user.email", "a@b.c")
    run(root, "git", "config", "user.name", "a")
    run(root, *dvc, "init", "-q")
    write = (
        "import json, pathlib, yaml\n"
        "made = yaml.safe_load(open('params.yaml'))\n"
        "scores = json.load(open('template.json'))\n"
        "row = scores['rows'][2]['metrics']['frechet_distance']\n"
        "row.update(value=made['distance'], low=made['distance'] - 0.01, high=made['distance'] + 0.01)\n"
        "flat = {'winner': {'frechet_distance': row['value']}}\n"
        "for name, told in (('scores/scores', scores), ('metrics/evaluate', flat)):\n"
        "    path = pathlib.Path(f'work/{name}.json'); path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.write_text(json.dumps(told))\n"
        "path = pathlib.Path('work/plots/evaluate.csv'); path.parent.mkdir(parents=True, exist_ok=True)\n"
        "path.write_text(f'candidate,nfe,frechet_distance\\nstudent,4,{row[\"value\"]}\\n')\n"
    )
    (root / "write.py").write_text(write)
    (root / "template.json").write_text(json.dumps(scores(0.1)))
    stage = {"cmd": f"{sys.executable} write.py", "deps": ["write.py"], "params": ["distance"]}
    stage |= {"outs": ["work/scores"], "metrics": ["work/metrics/evaluate.json"]}
    stage["plots"] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["evaluate"]["plots"]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": stage}}))
    for name, distance in (("first", 0.1), ("second", 0.05)):
        (root / "params.yaml").write_text(f"distance: {distance}\n")
        run(root, *dvc, "repro", "-q")
        run(root, "git", "add", "-A")
        run(root, "git", "commit", "-qm", name)
        run(root, "git", "branch", f"runs/{name}")
    return root


def test_commits_are_compared_by_the_numbers_that_dvc_itself_shows(repository):
    places = Places(repository, repository / ".state", str(repository / ".state" / "remote"))
    one, two = (load_record(name, places) for name in ("first", "runs/second"))
    assert "through DVC" in one.source
    found = compare([one, two])
    dvc_diff = [sys.executable, "-m", "dvc", "{}", "diff", "--json", "runs/first", "runs/second"]
    shown = json.loads(run(repository, *(part.format("metrics") for part in dvc_diff)))
    told = shown["work/metrics/evaluate.json"]["winner.frechet_distance"]
    cells = next(m for m in found["metrics"] if m["metric"] == "frechet_distance")["runs"]
    assert (cells[0]["score"]["value"], cells[1]["score"]["value"]) == (told["old"], told["new"])
    assert cells[1]["difference"]["value"] == pytest.approx(told["diff"]) and cells[1]["word"] == "better"
    plots = run(repository, sys.executable, "-m", "dvc", "plots", "diff", "--json", "runs/first", "runs/second")
    drawings = json.loads(plots)["data"]["work/plots/evaluate.csv"]
    points = [point for one in drawings for point in one["content"]["data"]["values"]]
    drawn = {point["rev"]: (float(point["nfe"]), float(point["frechet_distance"])) for point in points}
    assert drawn == {"runs/first": (4.0, told["old"]), "runs/second": (4.0, told["new"])}
    params = json.loads(run(repository, *(part.format("params") for part in dvc_diff)))
    changed = params["params.yaml"]["distance"]
    assert found["params"] == [{"key": "distance", "values": [changed["old"], changed["new"]]}]


@pytest.mark.e2e
def test_mlflow_runs_versions_and_the_registered_comparison_say_the_same(tracked, tmp_path, monkeypatch):
    config = Config(gate={"limits": []}, register={"model_name": "compared"})
    for name, distance, weights in (("one", 0.09, 3), ("two", 0.04, 4)):
        root = make_workspace(tmp_path / name, distance, weights)
        grids = root / "work" / "scores" / "grids"
        grids.mkdir()
        (grids / "student-steps2.png").write_bytes(f"picture of {name}".encode())
        monkeypatch.setenv("MLX_TASKS_RUN_ID", name)
        verdict = run_register(root, config)
        assert verdict["promoted"]
    first = read_comparison(tmp_path / "one" / "work" / "registered" / "comparison")
    assert first.found is None and "The first version of its model" in first.why

    kept = read_comparison(tmp_path / "two" / "work" / "registered" / "comparison")
    assert [run["name"] for run in kept.found["runs"]] == ["version 1, champion before", "this run"]
    assert word(kept.found, "frechet_distance") == "better" and word(kept.found, "recall") == "inside the noise"
    assert kept.pictures == (b"picture of one", b"picture of two")

    places = Places(tmp_path, tmp_path / ".state", "")
    version = Registry(tracked.uri).resolve("compared/1")
    by_version, by_run = (load_record(reference, places) for reference in ("compared/1", version.run_id))
    by_alias = load_record("compared@champion", places)
    assert by_version.scores == by_run.scores == json.loads((tmp_path / "one" / SCORES).read_text())
    assert by_alias.scores == json.loads((tmp_path / "two" / SCORES).read_text())
    assert by_run.params["register.model_name"] == "compared" and by_run.picture("nobody") is None
    with pytest.raises(DataError, match="no MLflow run 'f00d'"):
        load_record("f00d", places)


def test_scores_of_another_shape_are_refused_by_what_they_lack(tmp_path):
    made = tmp_path / "work" / "scores"
    made.mkdir(parents=True)
    told = scores(0.1)
    del told["winner"]["rule"]
    (made / "scores.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"lacks 'rule' or has another shape"):
        load_record(str(tmp_path), Places(tmp_path, tmp_path, ""))


def test_a_workspace_folder_is_read_with_its_pictures(tmp_path):
    made = tmp_path / "workspaces" / "some-run"
    (made / "work" / "scores" / "grids").mkdir(parents=True)
    (made / "work" / "scores" / "scores.json").write_text(json.dumps(copy.deepcopy(scores(0.1))))
    (made / "work" / "scores" / "grids" / "student.png").write_bytes(b"png")
    (made / "params.yaml").write_text("seed: 3\n")
    places = Places(tmp_path, tmp_path, "")
    for reference in ("some-run", str(made)):
        found = load_record(reference, places)
        assert (found.params, found.picture("student"), found.picture("teacher")) == ({"seed": 3}, b"png", None)


def test_a_run_that_is_nowhere_says_where_it_was_looked_for(repository, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    places = Places(repository, repository / ".state", "")
    with pytest.raises(
        DataError, match=r"no run 'nothing': no workspace .*; no branch or commit .*; MLFLOW_TRACKING_URI"
    ):
        load_record("nothing", places)
