"""Runs and their nodes with real git, DVC and processes: nothing mixes, nothing is lost, cached says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orchestration as o
import psutil
import pytest
import yaml
from node_world import behave, place_inputs, tries
from orchestration import node, open_run, result_of, spec, workspace

from mlx_tasks.errors import ExitCode, UnavailableError
from mlx_tasks.workspace import mlflow_parent, opening
from mlx_tasks.workspace.closing import list_workspaces, prune_workspaces
from mlx_tasks.workspace.paths import Places

pytest_plugins = ["mlflow_server", "node_world"]


def test_a_run_is_opened_once_and_its_params_are_resolved_in_its_workspace(env, checkout):
    head, status = o.run_git(checkout, "rev-parse", "HEAD"), o.run_git(checkout, "status", "--porcelain")
    run = open_run(env, search_trials=2, overrides={"train.steps": 77}, promotion="off")
    params = yaml.safe_load((workspace(env, run) / "params.yaml").read_text())
    assert (params["search"]["slots"], params["train"]["steps"], params["gate"]["promote"]) == ([0, 1], 77, False)
    assert not run["edited"]
    assert open_run(env, search_trials=5) == run  # a retry finds what stands, whatever it brings
    assert o.run_git(checkout, "rev-parse", "HEAD") == head
    assert o.run_git(checkout, "status", "--porcelain") == status
    assert o.run_git(checkout, "rev-parse", run["branch"]).strip() == run["commit"]
    assert yaml.safe_load(o.run_git(checkout, "show", f"{run['commit']}:params.yaml")) == params


def test_uncommitted_edits_come_along_and_the_run_says_so(env, checkout):
    extra = checkout / "include" / "note.yaml"
    extra.write_text("not committed")
    try:
        run = open_run(env, seed=9)
    finally:
        extra.unlink()
    assert run["edited"]
    assert "uncommitted edits" in run["notes"][0]
    assert (workspace(env, run) / "include" / "note.yaml").read_text() == "not committed"
    assert o.run_git(checkout, "rev-parse", f"{run['commit']}~2").strip() == run["base"]


def test_an_ignored_dataset_is_named_absolutely(env, checkout):
    images = checkout / "build" / "images"  # ignored by git, so in no commit
    images.mkdir(parents=True, exist_ok=True)
    run = open_run(env, dataset="build/images")
    assert yaml.safe_load((workspace(env, run) / "params.yaml").read_text())["data"]["path"] == str(images)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"overrides": {"train.stepz": 3}}, "train.stepz"),
        ({"resolutions": [16, 8]}, "must rise strictly"),
        ({"resolutions": [9]}, "not divisible by the U-Net's stride 2"),
        ({"steps_to_reach": 3}, "power of two"),
        ({"preset": "none-such"}, "no preset named 'none-such'"),
        ({"dataset": "no/such/folder"}, "'no/such/folder' is neither in the checkout"),
        ({"search_trials": 0}, "search_trials must be a whole number from 1 to 64, got 0"),
        ({"steps": 3}, "the form has no field 'steps'"),
    ],
)
def test_a_bad_value_is_refused_before_a_workspace_stands(env, form, words):
    done = o.mlx_tasks(env, "open-run", "--spec", json.dumps({"run_id": "bad", "form": form}))
    assert done.returncode == ExitCode.BAD_INPUT
    assert words in done.stdout
    assert not list(Places(Path(), Path(env["ADO_STATE"]), "").workspaces.glob("*/.run/run.json"))


def test_mlflow_down_at_the_start_is_said_before_anything_is_trained(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(mlflow_parent, "START_PATIENCE_S", 0.5)
    places = Places(checkout, tmp_path / "state", str(tmp_path / "remote"))
    with pytest.raises(UnavailableError, match=r"MLflow at http://127\.0\.0\.1:9 did not answer"):
        opening.open_run(places, "a", {})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    run = opening.open_run(places, "a", {})  # once it is there, or not asked for, the retry goes on
    assert run["mlflow_parent"] is None
    assert (places.workspaces / run["slug"] / "params.yaml").exists()


def test_two_openings_at_once_make_one_run(env):
    command = [sys.executable, "-m", "mlx_tasks", "open-run", "--spec", '{"run_id": "same", "form": {}}']
    both = [subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, cwd=env["ADO_STATE"]) for _ in "ab"]
    runs = [result_of(process.communicate(timeout=60)[0]) for process in both]
    assert runs[0] == runs[1]


def test_a_stage_runs_once_and_is_cached_in_this_run_and_in_the_next(env, checkout):
    run = open_run(env, "first")
    code, ran, output = node(env, run, "validate")
    assert (code, ran["status"]) == (0, "ran"), output
    assert "[validate] 2/2 steps" in output
    assert "git add" not in output, "DVC's advice is for who commits by hand"
    assert ran["metrics"] == {"target": "validate", "seed": 0}
    assert {out["path"] for out in ran["lock"]["outs"]} >= {"work/dataset", "work/metrics/validate.json"}
    code, again, output = node(env, run, "validate")
    assert (code, again["status"], again["lock"]) == (0, "cached", ran["lock"]), output
    assert tries(env, run, "validate") == 1
    other = open_run(env, "second")
    code, cached, output = node(env, other, "validate")
    assert (code, cached["status"], cached["lock"]) == (0, "cached", ran["lock"]), output
    assert (workspace(env, other) / "work/dataset/data.json").exists()
    record = json.loads((workspace(env, other) / ".run/stages/validate.json").read_text())
    first = json.loads((workspace(env, run) / ".run/stages/validate.json").read_text())
    assert record["cached"]
    assert record["seconds"] == first["seconds"]
    third = open_run(env, "third", seed=5)
    assert node(env, third, "validate")[1]["status"] == "ran"


def test_a_failed_stage_gives_its_own_code_and_words_and_a_retry_finds_its_checkpoints(env):
    run = open_run(env)
    for kind, code, words in (
        ("data", ExitCode.BAD_INPUT, "bad"),
        ("bug", ExitCode.UNKNOWN, "KeyError"),
        ("kill", 128 + signal.SIGKILL, "killed by signal 9"),
    ):
        behave(env, validate={"fails": 3, "kind": kind})
        found, result, output = node(env, run, "validate")
        assert (found, result["status"], result["exit_code"]) == (code, "failed", code), output
        assert words in result["message"]
    found, result, output = node(env, run, "validate")
    assert (found, result["status"]) == (0, "ran"), output
    assert tries(env, run, "validate") == 4


def test_out_of_memory_halves_the_micro_batch_of_the_next_try(env):
    run = open_run(env, overrides={"train.batch_size": 6})
    place_inputs(env, run)
    behave(env, train={"fails": 3, "kind": "memory"})
    seen = []
    for _ in range(3):
        code, result, output = node(env, run, "train")
        seen.append(next(line for line in output.splitlines() if line.startswith("MLX_TASKS_MICRO_BATCH")))
    assert seen == [f"MLX_TASKS_MICRO_BATCH {n}" for n in ("None", 3, 1)]
    assert code == ExitCode.BAD_INPUT  # one image at a time did not fit either: a retry cannot help
    assert "not even one image a micro-batch fits" in result["message"]


def test_a_node_that_is_killed_takes_its_stage_along_and_one_that_is_terminated_waits_for_it(env, tmp_path):
    run = open_run(env)
    for sent, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, ExitCode.INTERRUPTED)):
        started = tmp_path / f"started-{sent}"
        behave(env, validate={"fails": 99, "kind": "hang", "started": str(started)})
        command = [sys.executable, "-m", "mlx_tasks", "node", "--spec", spec(run, "validate")]
        process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, cwd=env["ADO_STATE"])
        while not (started.exists() and started.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        stage = int(started.read_text())
        process.send_signal(sent)
        output, _ = process.communicate(timeout=10)
        assert process.returncode == code, output
        deadline = time.monotonic() + 2.0
        while psutil.pid_exists(stage) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not psutil.pid_exists(stage)


def test_a_table_of_locks_that_a_killed_process_left_cut_stops_nobody(env):
    """DVC writes it in place, so that kill -9 can leave it empty."""
    run = open_run(env)
    assert node(env, run, "validate")[0] == 0
    table = workspace(env, run) / ".dvc" / "tmp" / "rwlock"
    for cut in ("", '{"write": {"/so'):
        table.write_text(cut)
        code, result, output = node(env, run, "validate")
        assert (code, result["status"]) == (0, "cached"), output


def test_two_nodes_of_one_workspace_take_turns_and_two_runs_do_not_meet(env, tmp_path):
    one, other = open_run(env, "one", seed=1), open_run(env, "other", seed=2)
    asked = [
        spec(one, "validate"),
        spec(one, "search_plan", fan_out="search_trial", generation=0),
        spec(other, "validate"),
    ]
    processes = [
        subprocess.Popen([sys.executable, "-m", "mlx_tasks", "node", "--spec", text], env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=env["ADO_STATE"])
        for text in asked
    ]  # fmt: skip
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(outputs)
    for run, seed in ((one, 1), (other, 2)):
        made = json.loads((workspace(env, run) / "work/dataset/data.json").read_text())
        assert made["seed"] == seed
    lock = yaml.safe_load((workspace(env, one) / "dvc.lock").read_text())["stages"]
    assert set(lock) == {"validate", "search_plan_0"}
    assert result_of(outputs[1])["fan_out"] == [{"generation": 0, "slot": slot} for slot in (0, 1, 2)]


def test_the_next_stage_may_run_on_a_machine_that_shares_no_disk(machines, tmp_path):
    here, there = machines
    run = open_run(here)
    ran = node(here, run, "validate")[1]
    code, taught, output = node(there, run, "train", {"validate": ran["lock"]}, commit="after")
    assert (code, taught["status"]) == (0, "ran"), output
    assert "brought work/dataset" in output
    assert (workspace(there, run) / "work/dataset/data.json").exists()
    branch = o.run_git(tmp_path / "hub.git", "show", f"{run['branch']}:dvc.lock")
    assert set(yaml.safe_load(branch)["stages"]) == {"validate", "train"}


def test_a_run_that_is_closed_is_one_commit_from_which_its_artifacts_come_back(env, checkout, tmp_path):
    run = open_run(env, seed=3)
    locks = {"validate": node(env, run, "validate")[1]["lock"]}
    code, result, output = node(env, run, "image_text", locks, commit="before")
    assert code == 0, output
    named = next(line for line in output.splitlines() if line.startswith("MLX_TASKS_RUN_COMMIT")).split()[1]
    assert set(yaml.safe_load(o.run_git(checkout, "show", f"{named}:dvc.lock"))["stages"]) == {"validate"}
    locks["image_text"] = result["lock"]
    done = o.mlx_tasks(
        env, "close-run", "--spec", "-", stdin=json.dumps({"run": run, "locks": locks, "succeeded": True})
    )
    assert done.returncode == 0, done.stdout
    clone = tmp_path / "clone"
    o.run_git(tmp_path, "clone", "-q", "--branch", run["branch"], str(checkout), str(clone))
    remote = Path(env["ADO_STATE"]) / "dvc-remote"
    dvc = [sys.executable, "-m", "dvc"]
    quiet = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run([*dvc, "remote", "add", "-q", "-d", "kept", str(remote)], cwd=clone, check=True, env=quiet)
    subprocess.run([*dvc, "pull", "-q", "validate", "image_text"], cwd=clone, check=True, env=quiet)
    made = json.loads((clone / "work/image_text/data.json").read_text())
    assert made == {"target": "image_text", "seed": 3}


def test_old_workspaces_go_but_not_those_at_work_and_branches_stay(env, checkout):
    runs = [open_run(env, f"run-{n}") for n in range(3)]
    places = Places(checkout, Path(env["ADO_STATE"]), "")
    for n, run in enumerate(runs):
        os.utime(workspace(env, run) / ".run" / "run.json", (n, n))
    assert [run["run_id"] for run in list_workspaces(places)] == ["run-2", "run-1", "run-0"]
    from mlx_tasks.locks import held

    with held(places.lock(runs[0]["slug"]), "a node", what="the workspace"):
        assert prune_workspaces(places, keep=1) == [workspace(env, runs[1])]
    assert prune_workspaces(places, keep=1) == [workspace(env, runs[0])]
    assert workspace(env, runs[2]).exists()
    for run in runs:
        assert o.run_git(checkout, "rev-parse", run["branch"]).strip() == run["commit"]


def test_a_spec_that_is_none_is_bad_input(env):
    for command, text, words in (
        ("node", "{", "must be JSON"),
        ("node", "{}", "--spec lacks run, stage"),
        ("node", '{"run": {}, "stage": "dance"}', "no stage named 'dance'"),
    ):
        done = o.mlx_tasks(env, command, "--spec", text)
        assert done.returncode == ExitCode.BAD_INPUT
        assert words in done.stdout
