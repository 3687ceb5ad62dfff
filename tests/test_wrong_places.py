"""Commands where they do not belong: another folder, a full disk, a closed pipe; and foreign things among ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orchestration as o
import pytest

from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.retention.runs import FOREIGN, branches, known_runs, workspaces
from mlx_tasks.stack.commands import _checkout
from mlx_tasks.workspace.closing import list_workspaces
from mlx_tasks.workspace.paths import Places, run_slug

pytest_plugins = ["node_world"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["up"], "is no checkout of this project"), (["demo"], "is no checkout of this project"),
        (["secret", "password"], "is no checkout of this project"), (["loop"], "is no checkout of this project"),
        (["loop", "--damage", "flood"], "is written noise:AMOUNT"), (["validate"], "has no params.yaml"),
        (["search_trial", "--generation", "0", "--slot", "1"], "has no params.yaml"),
    ],
)  # fmt: skip
def test_a_command_in_a_folder_of_something_else_says_so_and_leaves_nothing_there(command, words, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ADO_")}
    done = subprocess.run(
        [sys.executable, "-m", "mlx_tasks", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_this_checkout_is_one(repository, tmp_path):
    assert _checkout(repository) == repository
    with pytest.raises(DataError, match="name it with --root"):
        _checkout(tmp_path)


def _resolve(repository: Path, stdout: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_tasks", "resolve", "--root", str(repository)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_has_seen_enough_gets_no_trace(repository):
    reading, writing = os.pipe()
    os.close(reading)
    done = _resolve(repository, writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_told_with_a_remedy(repository):
    full = os.open("/dev/full", os.O_WRONLY)
    done = _resolve(repository, full)
    os.close(full)
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "No space left on device: make room" in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_run_of_the_chain_is_never_cleaned(checkout, tmp_path):
    places = Places(checkout, tmp_path / "state", str(tmp_path / "remote"))
    ours = places.workspaces / run_slug("old")
    for folder in (ours, places.workspaces / "my notes", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    (places.workspaces / ".DS_Store").touch()
    (places.workspaces / run_slug("linked")).symlink_to(tmp_path / "elsewhere")
    for name in ("runs/my-own", f"runs/{run_slug('old')}"):
        o.run_git(checkout, "branch", name)
    runs = known_runs(places, [], [], 1e12)
    assert set(runs) == {run_slug("old"), "my notes", "my-own"}
    area, (here,) = workspaces(places, runs, 1e12), branches(places, runs)
    assert [item.name for item in area.goes] == [str(ours)] and area.stays == {FOREIGN: 1}
    assert [item.name for item in here.goes] == [f"refs/heads/runs/{run_slug('old')}"]


def test_a_damaged_workspace_hides_no_other(env, tmp_path):
    run = o.open_run(env)
    places = Places(Path(env["ADO_REPOSITORY"]), Path(env["ADO_STATE"]), str(tmp_path / "remote"))
    for name, text in (("half", "{"), ("list", "[]"), ("copied", '{"slug": "other"}')):
        marker = places.workspaces / name / ".run" / "run.json"
        marker.parent.mkdir(parents=True)
        marker.write_text(text)
    assert [one["slug"] for one in list_workspaces(places)] == [run["slug"]]
    assert o.mlx_tasks(env, "workspaces", "--prune", "-1").returncode == ExitCode.BAD_INPUT


def test_a_version_to_begin_from_asks_for_a_stage(env):
    done = o.mlx_tasks(env, "open-run", "--spec", '{"run_id": "x", "form": {"begin_with": "m@champion"}}')
    assert done.returncode == ExitCode.BAD_INPUT and "which stage by start_from" in done.stdout
