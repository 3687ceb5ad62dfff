"""A stage that one worker ran is cached for all of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from node_world import behave
from orchestration import node, open_run, spec, workspace

from mlx_tasks.errors import ExitCode

pytest_plugins = ["node_world"]


@pytest.fixture
def trained(machines):
    """(the machine that trained, another one, the run there, locks before, what came of it); its word got lost."""
    here, there = machines
    run = open_run(here)
    locks = {"validate": node(here, run, "validate")[1]["lock"]}
    code, result, output = node(here, run, "train", locks)
    assert (code, result["status"]) == (0, "ran"), output
    return here, there, run, locks, result


def test_a_stage_whose_word_got_lost_is_cached_where_it_is_tried_again(trained):
    _, there, run, locks, first = trained
    behave(there, train={"fails": 9, "kind": "bug"})  # it does not run again
    code, result, output = node(there, run, "train", locks)
    assert (code, result["status"], result["lock"]) == (0, "cached", first["lock"]), output
    assert "train: brought what the worker that ran this before has made" in output
    assert json.loads((workspace(there, run) / "work/teacher/data.json").read_text())["target"] == "train"


def test_its_record_comes_with_it(trained):
    here, there, run, locks, _ = trained
    node(there, run, "train", locks)
    kept = [json.loads(next(workspace(one, run).rglob("train.json")).read_text()) for one in (here, there)]
    assert kept[0].pop("cached", False) is False and kept[1].pop("cached") is True
    assert kept[0] == kept[1] and kept[0]["seconds"] > 0


def test_another_run_of_the_same_params_elsewhere_runs_nothing(trained):
    _, there, _, _, _ = trained
    run = open_run(there, "second")
    code, validated, _ = node(there, run, "validate")
    assert (code, validated["status"]) == (0, "cached")
    code, result, _ = node(there, run, "train", {"validate": validated["lock"]})
    assert (code, result["status"]) == (0, "cached")
    other = open_run(there, "third", seed=5)
    assert node(there, other, "validate")[1]["status"] == "ran"


def _lose(remote: Path) -> None:
    (teacher,) = [
        path for path in (remote / "files/md5").rglob("*") if path.is_file() and '"target": "train"' in path.read_text()
    ]
    teacher.unlink()


def _cut(remote: Path) -> None:
    for path in (remote / "runs").rglob("*"):
        if path.is_file():
            path.write_text(path.read_text()[:20])


@pytest.mark.parametrize("harm", [_lose, _cut])
def test_what_the_store_has_lost_is_computed_again_and_kept(trained, tmp_path, harm):
    _, there, run, locks, first = trained
    harm(tmp_path / "remote")
    code, result, output = node(there, run, "train", locks)
    assert (code, result["status"], result["lock"]) == (0, "ran", first["lock"]), output
    assert "the store cannot be asked what workers have run" in output
    assert list((tmp_path / "remote/records").iterdir())


def test_dvc_itself_reads_what_is_kept_there(trained):
    here, there, run, *_ = trained
    open_run(there)  # the same run's workspace there
    kept = [Path(one["ADO_STATE"]) / "dvc-cache/runs" for one in (here, there)]
    command = [sys.executable, "-m", "dvc", "fetch", "-q", "--run-cache"]
    subprocess.run(command, cwd=workspace(there, run), check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    entries = [
        {path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()} for folder in kept
    ]
    assert entries[0] == entries[1] and len(entries[0]) == 2


def test_a_node_told_to_stop_while_it_asks_a_silent_store_runs_no_stage(machines):
    """Whatever a store raises is passed over there; what the node's own handler of SIGTERM raises is not."""
    machine = machines[0]
    run = open_run(machine)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        machine |= {
            "ADO_DVC_REMOTE": "s3://nowhere/dvc",
            "ADO_DVC_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            **{"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"},
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_tasks", "node", "--spec", spec(run, "validate")],
            env=machine, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=machine["ADO_STATE"],
        )  # fmt: skip
        silent.settimeout(60)
        try:
            with contextlib.closing(silent.accept()[0]):
                process.send_signal(signal.SIGTERM)
                output = process.communicate(timeout=30)[0]
        finally:
            process.kill()
    assert process.returncode == ExitCode.INTERRUPTED, output
    assert not (workspace(machine, run) / ".checkpoints/validate/tries").exists()


def test_a_machine_of_its_own_asks_no_store(env):
    run = open_run(env)
    assert node(env, run, "validate")[1]["status"] == "ran"
    assert not (Path(env["ADO_STATE"]) / "dvc-remote/runs").exists()


def test_a_run_cache_that_a_killed_worker_left_half_written_is_mended(env):
    """DVC itself does not get past a key without an entry."""
    run = open_run(env)
    code, first, _ = node(env, run, "validate")
    assert (code, first["status"]) == (0, "ran")
    (entry,) = [path for path in (Path(env["ADO_STATE"]) / "dvc-cache/runs").rglob("*") if path.is_file()]
    content = entry.read_text()
    for broken in (None, content[:30]):
        entry.unlink()
        if broken is not None:
            entry.with_name("cut").write_text(broken)
        again = open_run(env, f"again-{broken is None}")
        code, result, output = node(env, again, "validate")
        assert (code, result["status"], result["lock"]) == (0, "ran", first["lock"]), output
        assert entry.read_text() == content
