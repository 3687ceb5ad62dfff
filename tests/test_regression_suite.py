"""The regression suite: a sound bundle passes, and each way of going wrong is found by its own check."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.cli import main
from mlx_tasks.config_training import Model
from mlx_tasks.data.loader import ImageSet
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.models.bundle import Sampler, read_bundle, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.reference import REFERENCE_SEED, make_reference, read_reference, write_reference
from mlx_tasks.registry.regression import across_resolutions, check_bundle, check_images
from mlx_tasks.samplers.grids import uniform_grid

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle whose held-out images are of the sort that it draws itself, so that its reference is a good one."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    config = UNet2DConfig.build(
        Model(block_out_channels=(8, 16), attention_head_dim=8, norm_num_groups=4), 8, 1, 2, "relu"
    )
    schedule = NoiseSchedule.cosine()
    sampler = Sampler("ddim", uniform_grid(schedule, 3).timesteps, 1.0, 3, 8, 1, ("a", "b"), 2)
    write_bundle(path, UNet2DModel(config, mx.random.key(0)), schedule, sampler)
    bundle = read_bundle(path)
    held_out = draw(bundle, [i % 2 for i in range(2 * COUNT)], list(range(2 * COUNT)))
    write_reference(path, make_reference(bundle, held_out, COUNT))
    return path


def failing(checks):
    return [check.name for check in checks if not check.passed]


def test_a_sound_bundle_passes_every_check(folder):
    checks = check_bundle(folder, read_bundle(folder))
    assert failing(checks) == [] and len(checks) == 4
    assert checks[0].value < 1e-5


def test_each_fault_is_found(folder):
    reference, bundle = read_reference(folder), read_bundle(folder)
    images = draw(bundle, reference.labels.tolist(), list(range(REFERENCE_SEED, REFERENCE_SEED + COUNT)))
    assert failing(check_images(images, reference)) == []
    one = np.repeat(images[:1], COUNT, axis=0)
    assert "not collapsed" in failing(check_images(one, reference))
    flat = images.copy()
    flat[3] = 128
    assert "no flat images" in failing(check_images(flat, reference))
    assert {"same images", "frechet distance"} <= set(failing(check_images(255 - images, reference)))


def test_other_weights_are_not_the_same_images(folder):
    bundle = read_bundle(folder)
    other = replace(bundle, model=UNet2DModel(bundle.model.config, mx.random.key(1)))
    assert "same images" in failing(check_bundle(folder, other))


def test_every_resolution_with_data_gets_a_row_with_its_own_ruler(folder):
    """Held-out images of the bundle's own kind at 16 pixels, faint ones at 8: it is as good as real, then not."""
    bundle, labels = read_bundle(folder), np.arange(2 * COUNT) % 2

    def split(side, faint):
        at = replace(bundle, sampler=replace(bundle.sampler, resolution=side))
        images = draw(at, labels.tolist(), list(range(2 * COUNT)))
        return ImageSet(images // 16 + 120 if faint else images, labels, [""] * len(labels), ["a", "b"])

    rows = across_resolutions(bundle, {16: split(16, faint=False), 8: split(8, faint=True)})
    assert [(row["resolution"], row["samples"]) for row in rows] == [(8, COUNT), (16, COUNT)]
    assert rows[1]["times_real"] < 2 and rows[0]["times_real"] > 10, rows
    assert all(row["times_real"] == pytest.approx(row["frechet_distance"] / row["real"]) for row in rows)


def test_the_command_exits_with_the_answer(folder, capsys, tmp_path):
    assert main(["regress", "--bundle", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] and told["checks"][0]["name"] == "same images"
    assert main(["regress", "--bundle", str(folder)]) == 0
    assert "✓ yes" in capsys.readouterr().out
    assert main(["regress", "--bundle", str(folder), "--dataset", str(tmp_path)]) != 0
    assert "images/RESOLUTION.npy" in capsys.readouterr().err
