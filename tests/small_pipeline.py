"""A pipeline of a small bundle with random weights and three classes, and an effort that learns in seconds."""

import pytest
from registry_workspace import write_small_bundle

from mlx_tasks import DiffusionPipeline

QUICK = {"tries": 4, "iterations": 2, "noises": 8, "methods": ("least_squares",), "batch_size": 4}
QUICK |= {"reference_steps": 16}


def quiet(_):
    """Tell nobody."""


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "b"
    write_small_bundle(folder)
    return DiffusionPipeline.from_pretrained(folder)
