"""Files of a machine's DVC cache that rot: what a run reads and makes is what their names say, or it is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from node_world import tries
from orchestration import node, open_run, workspace

from mlx_tasks.errors import ExitCode

pytest_plugins = ["node_world"]


def rot(folder: Path, but: str = "none") -> int:
    """Another bit in the middle of every file, `but` those whose name ends so; how many."""
    files = [path for path in (folder / "files").rglob("*") if path.is_file() and not path.name.endswith(but)]
    for path in files:
        mode = path.stat().st_mode
        path.chmod(0o644)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        path.chmod(mode)  # read-only, as DVC leaves them, and for which it takes them as sound
    return len(files)


def cache(env: dict[str, str]) -> Path:
    return Path(env["ADO_STATE"]) / "dvc-cache"


def remote(env: dict[str, str]) -> Path:
    return Path(env["ADO_STATE"]) / "dvc-remote"


def trained(env: dict[str, str], name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]:
    """A run's first two nodes: (run, validate's result, train's result, what train said)."""
    run = open_run(env, name)
    code, first, told = node(env, run, "validate")
    assert code == 0, told
    code, second, words = node(env, run, "train", {"validate": first["lock"]})
    assert code == 0, words
    return run, first, second, told + words


@pytest.mark.parametrize("but", [".dir", "none"], ids=["files", "files and folders' lists"])
def test_a_run_after_the_cache_rotted_has_the_same_artifacts_from_the_remote(env, but):
    _, validated, first, _ = trained(env, "before")
    assert rot(cache(env), but) >= 2
    run, again, second, told = trained(env, "after")
    assert (again["lock"], second["lock"]) == (validated["lock"], first["lock"])
    assert (again["status"], second["status"]) == ("cached", "cached"), told
    assert "train: rotten in this machine's cache, asked of the store: work/" in told
    assert (workspace(env, run) / "work/dataset/data.json").read_text() == '{"target": "validate", "seed": 0}'
    assert (workspace(env, run) / "work/teacher/data.json").read_text() == '{"target": "train", "seed": 0}'


def test_what_neither_cache_nor_remote_has_whole_is_made_again(env):
    _, validated, first, _ = trained(env, "before")
    rot(cache(env))
    shutil.rmtree(remote(env))
    run, again, second, _ = trained(env, "after")
    assert (again["lock"], second["lock"]) == (validated["lock"], first["lock"])
    assert (again["status"], second["status"], tries(env, run, "train")) == ("ran", "ran", 1)


def test_bytes_made_anew_are_not_replaced_by_rotten_ones_of_the_same_name(env, checkout):
    """Another code version makes the same outs: DVC runs it, finds the outs' names in the cache, and links those."""
    _, _, first, _ = trained(env, "before")
    rot(cache(env))
    (checkout / "mlx_tasks" / "stages" / "train.py").open("a").write("\n")
    try:
        run, _, second, _ = trained(env, "after")
    finally:
        source = checkout / "mlx_tasks" / "stages" / "train.py"
        source.write_text(source.read_text().removesuffix("\n"))
    assert second["status"] == "ran" and second["lock"]["outs"] == first["lock"]["outs"]
    assert (workspace(env, run) / "work/teacher/data.json").read_text() == '{"target": "train", "seed": 0}'


def test_a_rotten_dep_is_not_read_by_a_stage_on_a_machine_that_lacks_it_in_its_workspace(env):
    run, validated, _, _ = trained(env, "run")
    shutil.rmtree(workspace(env, run) / "work" / "dataset")
    rot(cache(env))
    code, result, told = node(env, run, "train", {"validate": validated["lock"]})
    assert (code, result["status"]) == (0, "cached"), told
    assert "brought work/dataset" in told
    assert (workspace(env, run) / "work/dataset/data.json").read_text() == '{"target": "validate", "seed": 0}'


def test_a_rotten_remote_is_refused_and_named(env):
    run, validated, _, _ = trained(env, "run")
    shutil.rmtree(workspace(env, run) / "work" / "dataset")
    shutil.rmtree(cache(env))
    rot(remote(env))
    code, result, told = node(env, run, "train", {"validate": validated["lock"]})
    assert code == ExitCode.UNAVAILABLE, told
    assert "the DVC remote does not give work/dataset" in result["message"]
    assert not (workspace(env, run) / "work/dataset/data.json").exists()
