"""Runs and nodes as a test calls them: the real commands as processes, on a checkout with stages that take no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orchestration as o
import pytest
from orchestration import workspace


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return o.make_repository(tmp_path_factory.mktemp("node"))


@pytest.fixture
def env(checkout, tmp_path) -> dict[str, str]:
    return o.environment(checkout, tmp_path / "state", MLX_TASKS_EVENTS="1")


@pytest.fixture
def machines(env, checkout, tmp_path) -> list[dict[str, str]]:
    """Two that share a git remote and a store, and no disk; `hub.git` and `remote` are in `tmp_path`."""
    hub = tmp_path / "hub.git"
    o.run_git(tmp_path, "clone", "-q", "--bare", str(checkout), str(hub))
    shared = {"ADO_DVC_REMOTE": str(tmp_path / "remote"), "ADO_GIT_REMOTE": "origin"}
    made = []
    for name in ("here", "there"):
        o.run_git(tmp_path, "clone", "-q", str(hub), str(tmp_path / name))
        (state := tmp_path / f"state-{name}").mkdir()
        made.append({**env, **shared, "ADO_REPOSITORY": str(tmp_path / name), "ADO_STATE": str(state)})
    return made


def behave(env: dict[str, str], **behaviour: Any) -> None:
    Path(env["TEST_BEHAVIOUR"]).write_text(json.dumps(behaviour))


def place_inputs(env: dict[str, str], run: dict[str, Any]) -> None:
    """What `train` reads, without running `validate` for it."""
    dataset = workspace(env, run) / "work" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "data.json").write_text("{}")


def tries(env: dict[str, str], run: dict[str, Any], target: str) -> int:
    return int((workspace(env, run) / ".checkpoints" / target / "tries").read_text())
