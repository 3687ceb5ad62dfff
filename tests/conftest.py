"""Shared by all tests: the BLAS is loaded before anything imports MLX, and no library phones home."""

import os
import signal
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

# As from a terminal: under nohup or a background job SIGHUP and SIGINT arrive ignored, every child inherits that, and
# then nothing here could be interrupted, or would end with its parent (mlx_tasks/supervision.py).
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

hardware.prepare()


LONGEST = (
    "test_end_to_end",
    "test_stack_alive",
    "test_fleet",
    "test_distributed_training",
    "test_deploy",
    "test_rl_stage",
)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: two, or three from four cores on; much of the time a stack's services are waited for."""
    return 3 if (os.cpu_count() or 1) >= 4 else 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the others run beside them (`--dist loadfile`)."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))
