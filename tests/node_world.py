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


def behave(env: dict[str, str], **behaviour: Any) -> None:
    Path(env["TEST_BEHAVIOUR"]).write_text(json.dumps(behaviour))


def place_inputs(env: dict[str, str], run: dict[str, Any]) -> None:
    """What `train` reads, without running `validate` for it."""
    dataset = workspace(env, run) / "work" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "data.json").write_text("{}")


def tries(env: dict[str, str], run: dict[str, Any], target: str) -> int:
    return int((workspace(env, run) / ".checkpoints" / target / "tries").read_text())
