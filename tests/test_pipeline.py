"""The pipeline in Python: images by seed and label, steps by budget, and goals that cannot be met."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_pipeline import QUICK, quiet

import mlx_tasks
from mlx_tasks import DiffusionPipeline
from mlx_tasks.data.loader import to_uint8
from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.registry.draw import draw
from mlx_tasks.samplers import bundle_noise, make_grid, sample_bundle

pytest_plugins = ["small_pipeline"]


def test_a_call_draws_what_the_bundle_draws(pipe):
    found = pipe([2, 0, 1], seed=7)
    alone = draw(pipe.bundle, [2], [7])
    assert found.images.shape == (3, 8, 8, 1) and found.images.dtype == np.uint8 and found.nfe == 2
    assert np.abs(found.images[0].astype(int) - alone[0].astype(int)).max() <= 1
    assert [image.size for image in found.pil()] == [(8, 8)] * 3
    assert len(pipe(num_images=2).images) == 2
    with pytest.raises(DataError, match="3 labels and num_images 2 differ"):
        pipe([0, 1, 2], num_images=2)


def test_optimize_gives_a_pipeline_that_saves_and_draws_the_same(pipe, tmp_path):
    better = pipe.optimize(nfe=3, tell=quiet, **QUICK)
    assert better.bundle.sampler.nfe == 3 and pipe.bundle.sampler.nfe == 2
    better.save_pretrained(tmp_path / "o")
    again = DiffusionPipeline.from_pretrained(tmp_path / "o")
    np.testing.assert_array_equal(again([1, 2]).images, better([1, 2]).images)
    with pytest.raises(DataError, match="one goal"):
        pipe.optimize(nfe=3, quality=0.1)
    with pytest.raises(DataError, match="is less than one step takes"):
        pipe.optimize(budget_ms=1e-6, tell=quiet, **QUICK)


def test_guidance_of_any_kind_and_steps_within_a_tolerance(pipe):
    plain, full = pipe([0, 1], seed=3), pipe([0, 1], seed=3, guidance_scale=2.0)
    assert plain.nfe == 2 and full.nfe == 4
    first_level = pipe.bundle.schedule.sigmas[pipe.bundle.sampler.timesteps[0]]
    late = mlx_tasks.Guidance(2.0, interval=(0.0, float(first_level) / 2))
    partly = pipe([0, 1], seed=3, guidance_scale=late)
    assert partly.nfe == 3 and not np.array_equal(partly.images, plain.images)
    paced = pipe([0, 1, 2], seed=3, tolerance=0.05)
    finer = pipe([0, 1, 2], seed=3, tolerance=0.01)
    assert paced.images.shape == (3, 8, 8, 1) and paced.nfe == paced.nfe_each.mean() < finer.nfe
    alone = pipe([0], seed=3, tolerance=0.05)
    assert alone.nfe == paced.nfe_each[0] and np.abs(alone.images[0].astype(int) - paced.images[0]).max() <= 1
    guided = pipe([0, 1], seed=3, tolerance=0.05, guidance_scale=2.0)
    assert (guided.nfe_each % 2 == 0).all()
    with pytest.raises(DataError, match="each choose the steps"):
        pipe([0], nfe=2, tolerance=0.05)


def test_any_solver_on_any_grid(pipe):
    bundle, labels = pipe.bundle, [0, 1, 2]
    noise = bundle_noise(bundle, 5, 3)
    for solver, grid, evaluations in (("unipc_3", "karras", 6), ("heun", "quadratic", 11), ("euler", "trailing", 6)):
        found = pipe(labels, seed=5, num_inference_steps=6, solver=solver, grid=grid)
        alone = sample_bundle(bundle, noise, labels, make_grid(grid, bundle.schedule, 6), solver)
        np.testing.assert_array_equal(found.images, to_uint8(np.array(alone.images)))
        assert found.nfe == evaluations
    named = pipe(labels, seed=5, num_inference_steps=4)
    given = pipe(labels, seed=5, grid=make_grid("log_snr", bundle.schedule, 4), solver="dpmpp_2m")
    levels = pipe(labels, seed=5, grid=make_grid("log_snr", bundle.schedule, 4).sigmas)
    np.testing.assert_array_equal(named.images, given.images)
    np.testing.assert_array_equal(named.images, levels.images)


def test_noise_that_a_solver_draws_is_each_images_own(pipe):
    several = pipe([0, 1, 2], seed=5, num_inference_steps=4, solver="ddpm", grid="leading", batch_size=2)
    alone = pipe([0], seed=5, num_inference_steps=4, solver="ddpm", grid="leading")
    assert np.abs(several.images[0].astype(int) - alone.images[0]).max() <= 1
    other = pipe([0], seed=6, num_inference_steps=4, solver="ddpm", grid="leading")
    assert np.abs(other.images[0].astype(int) - alone.images[0]).max() > 10


def test_previews_and_an_end_by_hand(pipe):
    seen = []

    def preview(step, sigma, estimate):
        seen.append((step, sigma, estimate))
        return step == 2

    found = pipe([0, 1], seed=5, num_inference_steps=6, callback=preview)
    assert [step for step, *_ in seen] == [0, 1, 2] and found.nfe == 3
    assert [sigma for _, sigma, _ in seen] == list(make_grid("log_snr", pipe.bundle.schedule, 6).sigmas[:3])
    np.testing.assert_array_equal(found.images, to_uint8(np.array(seen[-1][2])))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"nfe": 2, "num_inference_steps": 3}, "nfe 2 and num_inference_steps 3 each choose the steps"),
        ({"tolerance": 0.1, "grid": (5.0, 0.0)}, "each choose the steps"),
        ({"solver": "heun"}, "goes with num_inference_steps"),
        ({"grid": "karras"}, "goes with num_inference_steps"),
        ({"tolerance": 0.1, "callback": quiet}, "no callback"),
    ],
)
def test_one_way_of_choosing_the_steps(pipe, asked, said):
    with pytest.raises(DataError, match=said):
        pipe([0], **asked)


def test_what_cannot_be_drawn_is_refused_by_name(pipe):
    for nothing in ({"num_images": 0}, {"class_labels": []}, {"class_labels": [], "tolerance": 0.05}):
        with pytest.raises(DataError, match="at least one image"):
            pipe(**nothing)
    for strength in (3.0, mlx_tasks.Guidance(2.0)):
        with pytest.raises(DataError, match="guidance needs a condition"):
            pipe(num_images=2, guidance_scale=strength)
    assert pipe(num_images=2, guidance_scale=1.0).nfe == 2


def test_a_tolerance_starts_within_the_schedule_and_says_what_it_missed(pipe, caplog):
    schedule = NoiseSchedule(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    highest = []

    def model(x, t, labels):
        highest.append(float(t.max()))
        return pipe.bundle.model(x, t, labels)

    narrow = DiffusionPipeline(replace(pipe.bundle, schedule=schedule, model=model))
    assert schedule.sigmas[-1] < 15
    narrow([0, 1], tolerance=0.05)
    assert highest[0] == pytest.approx(999.0) and all(t < 999 for t in highest[1:])
    pipe([0], tolerance=1e-7)
    assert "met=0 of 1: the others end after 64 calls" in caplog.text


def test_what_the_package_offers_loads_its_blas_before_mlx():
    """On Linux MLX's own BLAS is the reference one, and a real one that comes later is not taken: 13 times slower."""
    code = """
import sys
from mlx_tasks import hardware
prepare, seen = hardware.prepare, []
def watched():
    seen.append("mlx.core" in sys.modules)
    return prepare()
hardware.prepare = watched
from mlx_tasks import NAME
assert "mlx.core" in sys.modules and seen[0] is False, seen
"""
    for name in mlx_tasks._LAZY:
        done = subprocess.run([sys.executable, "-c", code.replace("NAME", name)], capture_output=True, text=True)
        assert done.returncode == 0 and "blas=late" not in done.stderr, done.stderr


def test_importing_the_package_stays_light():
    code = "import sys, mlx_tasks; print(sorted({'mlx', 'numpy', 'torch'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        mlx_tasks.Pipeline  # noqa: B018
