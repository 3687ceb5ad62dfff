"""Shared by all tests: the BLAS is loaded before anything imports MLX, and no library phones home."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MLX_TASKS_THREADS", "1")
os.environ.update(
    DO_NOT_TRACK="1",
    DVC_NO_ANALYTICS="1",
    GX_ANALYTICS_ENABLED="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
)

from mlx_tasks import hardware

hardware.prepare()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent
