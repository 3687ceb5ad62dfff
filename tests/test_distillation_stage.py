"""The distill stage: a table that tells the truth, a gate that refuses, a kill that costs nothing but time."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
import torch
from test_training_stage import finish, kill_when, start
from training_world import context, workspace

from mlx_tasks.files import read_json, sha256_file
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.samplers import bundle_noise, sample_bundle
from mlx_tasks.stages import distill, train

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A workspace with a teacher."""
    root = workspace(tmp_path_factory.mktemp("taught"), distill={"max_quality_loss": 0.5})
    train.run(context(root, "train"))
    return root


@pytest.fixture(scope="module")
def distilled(taught, tmp_path_factory):
    root = tmp_path_factory.mktemp("distilled") / "w"
    shutil.copytree(taught, root)
    finish(start(root, "distill"))
    return root


def test_the_table_tells_what_the_bundles_are(distilled):
    table = read_json(distilled / "work" / "students" / "table.json")
    assert [row["steps"] for row in table["students"]] == [4, 2] and table["chosen"] == 2
    assert [row["name"] for row in table["teacher"]] == ["teacher", "teacher_own_sampler"]
    assert table["teacher"][0]["nfe"] == 16 and table["gate"]["samples"] == 32
    teacher = table["teacher"][0]["frechet_distance"]["value"]
    for row in table["students"]:
        assert row["frechet_distance"]["value"] <= 1.5 * teacher
        bundle = read_bundle(distilled / "work" / "students" / row["name"])
        assert row["nfe"] == row["steps"] == len(bundle.sampler.timesteps) == bundle.sampler.nfe
        assert (bundle.sampler.guidance_scale, bundle.sampler.solver) == (1.0, "ddim")
        interval = row["frechet_distance"]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"]
        assert row["latency_ms"] > 0 and row["train_seconds"] > 0 and row["accepted"] is True
        files = (distilled / "work" / "students" / row["name"]).rglob("*.safetensors")
        assert row["size_mb"] == pytest.approx(sum(f.stat().st_size for f in files) / 2**20)
    assert read_json(distilled / "work" / "metrics" / "distill.json")["chosen_steps"] == 2
    assert not (distilled / ".checkpoints" / "distill").exists()


def test_diffusers_ddim_draws_the_students_images(distilled):
    diffusers = pytest.importorskip("diffusers")
    folder = distilled / "work" / "students" / "steps_4"
    bundle = read_bundle(folder)
    noise = bundle_noise(bundle, 0, 6)
    labels = np.arange(6)
    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet")
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == list(bundle.sampler.timesteps)
    x = torch.tensor(np.array(noise)).permute(0, 3, 1, 2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, torch.tensor(labels)).sample, t, x).prev_sample
    ours = np.array(sample_bundle(bundle, noise, labels).images)
    np.testing.assert_allclose(ours, x.permute(0, 2, 3, 1).numpy(), atol=1e-4)


def test_killed_inside_the_second_student_it_goes_on_there_and_ends_with_the_same_bytes(taught, distilled, tmp_path):
    root = tmp_path / "torn"
    shutil.copytree(taught, root)
    folder = root / ".checkpoints" / "distill"
    kill_when(start(root, "distill"), lambda: any((folder / "steps_2").glob("step_*[0-9]")))
    done = sha256_file(folder / "finished" / "steps_4" / WEIGHTS)
    assert not (root / "work" / "students").exists()
    output = finish(start(root, "distill"))
    assert "to 4 steps" not in output and "drawing" not in output
    for name in ("steps_4", "steps_2"):
        path = f"work/students/{name}/{WEIGHTS}"
        assert sha256_file(root / path) == sha256_file(distilled / path), name
    assert sha256_file(root / "work" / "students" / "steps_4" / WEIGHTS) == done


def test_a_student_made_bad_is_refused_kept_and_ends_the_halving(taught, tmp_path, monkeypatch):
    """The second student is made to draw white squares: the gate measures, so it must see that."""
    root = tmp_path / "bad"
    shutil.copytree(taught, root)
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("target_steps: 2", "target_steps: 1"))
    real = distill.halving_steps

    def spoiled(student, teacher, data, schedule, num_steps, *rest):
        yield from real(student, teacher, data, schedule, num_steps, *rest)
        if num_steps == 2:
            student.conv_out.bias = mx.full(student.conv_out.bias.shape, -1e3)

    monkeypatch.setattr(distill, "halving_steps", spoiled)
    stage = context(root, "distill")
    distill.run(stage)
    table = read_json(root / "work" / "students" / "table.json")
    assert [(row["steps"], row["accepted"]) for row in table["students"]] == [(4, True), (2, False)]
    assert table["chosen"] == 4 and "above" in table["students"][1]["reason"]
    assert read_bundle(root / "work" / "students" / "steps_2").sampler.nfe == 2
    assert not (root / "work" / "students" / "steps_1").exists()
    assert {name for name, _ in stage.tracker.images} == {"distill/samples_4", "distill/samples_2"}


def test_with_no_student_accepted_nothing_is_chosen_and_the_stage_ends(taught, tmp_path):
    root = tmp_path / "none"
    shutil.copytree(taught, root)
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(
        text.replace("updates: 6", "updates: 1")
        .replace("learning_rate: 0.0003", "learning_rate: 1.0")
        .replace("max_quality_loss: 0.5", "max_quality_loss: 0.0")
    )
    distill.run(context(root, "distill"))
    table = read_json(root / "work" / "students" / "table.json")
    assert table["chosen"] is None and [row["accepted"] for row in table["students"]] == [False]
