"""The train stage as a process: killed with -9 and run again it gives the same bytes, and diffusers opens them."""

import csv
import os
import signal
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np
import pytest
import torch
from training_world import context, workspace

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, sha256_file
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.stages import train

WEIGHTS = "work/teacher/unet/diffusion_pytorch_model.safetensors"


def start(root, stage="train"):
    environment = os.environ | {"MLX_TASKS_THREADS": "1", "MLX_TASKS_LOCKS": str(root / ".locks")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlx_tasks", stage, "--root", str(root)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_when(process, ready, seconds=120):
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing to kill"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = workspace(tmp_path_factory.mktemp("calm"))
    finish(start(root))
    return root


def test_killed_twice_it_ends_with_the_same_bytes(trained, tmp_path):
    root = workspace(tmp_path / "torn")
    folder = root / ".checkpoints" / "train"
    kill_when(start(root), lambda: any(folder.glob("step_*[0-9]")))
    first = max(path.name for path in folder.glob("step_*[0-9]"))
    kill_when(start(root), lambda: max(p.name for p in folder.glob("step_*[0-9]")) > first)
    second = int(max(path.name for path in folder.glob("step_*[0-9]")).removeprefix("step_"))
    assert 4 < second < 24, "the kill came too late to prove anything"
    output = finish(start(root))
    assert f"step={second}" in output
    assert sha256_file(root / WEIGHTS) == sha256_file(trained / WEIGHTS)
    assert not folder.exists()

    def rows(where):
        with (where / "work/plots/train.csv").open() as file:
            return [row[:4] for row in csv.reader(file)]

    assert rows(root) == rows(trained) and len(rows(root)) == 25


def test_it_writes_what_it_says(trained):
    bundle = read_bundle(trained / "work" / "teacher")
    assert bundle.schedule.num_train_timesteps == 1024 and bundle.sampler.null_label == 10
    assert (bundle.sampler.solver, bundle.sampler.nfe, bundle.sampler.guidance_scale) == ("dpmpp_2m", 20, 1.5)
    assert bundle.lineage["dataset_fingerprint"] == "256-digits" and bundle.lineage["steps"] == 24
    metrics = read_json(trained / "work" / "metrics" / "train.json")
    assert set(metrics["validation_loss"]) == {"4", "8"} and metrics["train_loss"] > 0
    assert metrics["parameters"] == sum(v.size for v in _arrays(bundle.model))


def _arrays(model):
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(model.parameters())]


def test_diffusers_sees_the_same_network(trained):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DModel.from_pretrained(trained / "work" / "teacher", subfolder="unet")
    ours = read_bundle(trained / "work" / "teacher").model
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    t, labels = np.array([0.0, 500.0, 1023.0], np.float32), np.array([0, 4, 10])
    with torch.no_grad():
        expected = theirs(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), torch.tensor(labels)).sample
    got = np.array(ours(mx.array(x), mx.array(t), mx.array(labels)))
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1).numpy(), atol=1e-4)


def test_a_micro_batch_of_a_retry_goes_on_and_ends_nearly_the_same(trained, tmp_path, monkeypatch):
    """Out of memory, a retry halves the micro-batch: other rounding, the same training."""
    root = workspace(tmp_path / "small")
    monkeypatch.setenv("MLX_TASKS_MICRO_BATCH", "6")
    stage = context(root, "train")
    train.run(stage)
    one, two = (
        dict(zip("ab", _arrays(read_bundle(r / "work/teacher").model)[:2], strict=True)) for r in (root, trained)
    )
    for name in one:
        np.testing.assert_allclose(np.array(one[name]), np.array(two[name]), atol=2e-3)
    steps = [step for step, values in stage.tracker.rows if "train/loss" in values]
    assert steps == list(range(1, 25))
    assert {"train/learning_rate", "train/images_per_second", "train/peak_memory_mb", "train/grad_norm"} <= set(
        next(values for _, values in stage.tracker.rows if "train/loss" in values)
    )
    looked = {step for step, values in stage.tracker.rows if "train/validation_loss" in values}
    assert looked == {12, 24} == {step for name, step in stage.tracker.images if name == "train/samples"}


def test_without_labels_the_teacher_is_unconditional(tmp_path):
    root = workspace(tmp_path / "plain", labelled=False, train={"resolutions": [8], "steps": 3})
    stage = context(root, "train")
    train.run(stage)
    bundle = read_bundle(root / "work" / "teacher")
    assert bundle.model.config.num_class_embeds is None and bundle.sampler.class_names == ()
    assert (bundle.sampler.guidance_scale, bundle.sampler.nfe) == (1.0, 10)


def test_params_that_changed_start_again(tmp_path):
    root = workspace(tmp_path / "changed", train={"resolutions": [8], "steps": 8, "checkpoint_every": 2})
    assert _steps_until(root, 5) == [1, 2, 3, 4, 5]
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("seed: 0", "seed: 1"))
    stage = context(root, "train")
    train.run(stage)
    assert [step for step, values in stage.tracker.rows if "train/loss" in values] == list(range(1, 9))


def _steps_until(root, stop):
    """Steps of the stage, given up in mid-training after `stop`."""

    class Enough(Exception):
        pass

    stage = context(root, "train")
    seen = []

    def metrics(values, step):
        if "train/loss" in values:
            seen.append(step)
            if step == stop:
                raise Enough

    stage.tracker.metrics = metrics
    with pytest.raises(Enough):
        train.run(stage)
    return seen


def test_a_dataset_without_training_images_is_bad_input(tmp_path):
    root = workspace(tmp_path / "empty")
    import pandas as pd

    path = root / "work" / "dataset" / "manifest.parquet"
    pd.read_parquet(path).assign(split="test").to_parquet(path)
    with pytest.raises(DataError, match="no training images"):
        train.run(context(root, "train"))
