"""A dataset with links that lead nowhere, pipes and the like: DVC hashes what can be read and the stage starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from node_world import behave
from orchestration import node, open_run

from mlx_tasks.workspace.dvc_walk import is_readable_file

pytest_plugins = ["node_world"]


@pytest.fixture
def dataset(tmp_path) -> Path:
    folder = tmp_path / "pets"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"one")
    return folder


def spoil(dataset: Path) -> None:
    (dataset / "cat" / "gone.png").symlink_to("nowhere.png")
    (dataset / "cat" / "round.png").symlink_to("round.png")
    (dataset / "cat" / "up").symlink_to("..")
    os.mkfifo(dataset / "cat" / "pipe.png")


def test_a_node_takes_a_dataset_with_broken_links_loops_and_pipes(env, dataset):
    """Its hash is that of the one file that can be read."""
    behave(env)
    spoil(dataset)
    code, result, output = node(env, open_run(env, dataset=str(dataset)), "validate")
    assert (code, result["status"]) == (0, "ran"), output
    dep = next(one for one in result["lock"]["deps"] if one["path"] == str(dataset))
    assert (dep["nfiles"], dep["size"]) == (1, 3)


def test_the_command_dvc_passes_over_them_too(env, dataset, tmp_path):
    spoil(dataset)
    os.unlink(dataset / "cat" / "pipe.png")  # plain DVC would wait for it for ever
    stage = {"cmd": "ls", "deps": [str(dataset)]}
    (tmp_path / "repo").mkdir()
    run = lambda *command: subprocess.run(  # noqa: E731
        [sys.executable, "-m", *command], cwd=tmp_path / "repo", env=env, capture_output=True, text=True, timeout=120
    )
    assert run("dvc", "init", "--no-scm", "-q").returncode == 0
    (tmp_path / "repo" / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"look": stage}}))
    plain = run("dvc", "repro")
    assert plain.returncode != 0 and "No such file" in plain.stderr  # why this is needed
    ours = run("mlx_tasks.workspace.dvc_walk", "repro")
    assert ours.returncode == 0, ours.stderr
    assert "didn't change, skipping" in run("mlx_tasks.workspace.dvc_walk", "repro").stdout


def test_what_can_be_read(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = {name: is_readable_file(str(tmp_path / name)) for name in ("file", "link", "gone", "pipe", "none")}
    assert found == {"file": True, "link": True, "gone": False, "pipe": False, "none": False}
