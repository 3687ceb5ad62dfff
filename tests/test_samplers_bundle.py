"""Sampling from a real bundle: chunks, labels, guidance, noise by index, and the denoising strip."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.config_training import Model
from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.models.bundle import Bundle, Sampler
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers import (
    SOLVERS,
    bundle_noise,
    denoising_strip,
    grid_from_timesteps,
    keyed_noise,
    network_denoiser,
    sample,
    sample_bundle,
    uniform_grid,
)

STEPS = (999, 700, 300)
LABELS = [0, 1, 2, 1, 0]


def _bundle(classes=("a", "b", "c"), guidance_scale=1.7, solver="ddim"):
    model = Model(block_out_channels=(8, 16), attention_head_dim=8, norm_num_groups=4)
    config = UNet2DConfig.build(model, 8, 1, len(classes), "relu")
    null = len(classes) if classes else None
    evaluations = 1 if guidance_scale == 1.0 else 2
    sampler = Sampler(solver, STEPS, guidance_scale, evaluations * SOLVERS[solver].calls(3), 8, 1, classes, null)
    return Bundle(UNet2DModel(config, mx.random.key(3)), NoiseSchedule.cosine(), sampler)


@pytest.fixture(scope="module")
def bundle():
    return _bundle()


def test_an_images_noise_depends_on_seed_and_index_alone():
    many = keyed_noise(5, 7, (4, 4, 1))
    assert many.shape == (7, 4, 4, 1)
    assert mx.array_equal(many[3:5], keyed_noise(5, [3, 4], (4, 4, 1)))
    assert mx.array_equal(many[6], keyed_noise(5, [6, 0], (4, 4, 1))[0])
    assert not mx.array_equal(many, keyed_noise(6, 7, (4, 4, 1)))
    assert keyed_noise(5, 0, (4, 4, 1)).shape == (0, 4, 4, 1)
    with pytest.raises(ValueError, match=r"seed .* got -1"):
        keyed_noise(-1, 2, (4, 4, 1))


def test_noise_is_unit_normal_and_independent_between_neighbours():
    from scipy import stats

    noise = np.array(keyed_noise(0, 400, (8, 8, 1))).reshape(400, -1)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    neighbours = (noise[:-1] * noise[1:]).mean()
    assert abs(neighbours) < 4 / np.sqrt(noise[1:].size)
    other_seed = np.array(keyed_noise(1, 400, (8, 8, 1))).reshape(400, -1)
    assert abs((noise * other_seed).mean()) < 4 / np.sqrt(noise.size)


def test_chunks_and_order_do_not_change_an_image(bundle):
    noise = bundle_noise(bundle, 11, 5)
    whole = np.array(sample_bundle(bundle, noise, LABELS).images)
    for batch_size in (1, 2, 5):
        chunked = sample_bundle(bundle, noise, LABELS, batch_size=batch_size)
        np.testing.assert_allclose(np.array(chunked.images), whole, atol=2e-5)
    alone = sample_bundle(bundle, bundle_noise(bundle, 11, [3]), [LABELS[3]])
    np.testing.assert_allclose(np.array(alone.images)[0], whole[3], atol=2e-5)


def test_a_bundle_is_sampled_as_it_says(bundle):
    noise = bundle_noise(bundle, 0, 3)
    drawn = sample_bundle(bundle, noise, [2, 1, 0])
    denoise = network_denoiser(bundle.model, bundle.schedule, mx.array([2, 1, 0]), 1.7, 3)
    assert mx.array_equal(drawn.images, sample(denoise, noise, grid_from_timesteps(bundle.schedule, STEPS)).images)
    assert drawn.nfe == bundle.sampler.nfe == 6


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_the_caller_asks_for_wins(bundle, solver):
    noise = bundle_noise(bundle, 0, 2)
    grid = uniform_grid(bundle.schedule, 4)
    keys = mx.random.split(mx.random.key(0), 2)
    drawn = sample_bundle(bundle, noise, [2, 1], grid, solver, guidance_scale=1.0, keys=keys)
    denoise = network_denoiser(bundle.model, bundle.schedule, mx.array([2, 1]))
    assert mx.array_equal(drawn.images, sample(denoise, noise, grid, solver, key=keys).images)
    assert drawn.nfe == SOLVERS[solver].calls(4)


def test_without_labels_the_empty_label_is_drawn_unguided(bundle):
    noise = bundle_noise(bundle, 0, 2)
    drawn = sample_bundle(bundle, noise)
    assert drawn.nfe == 3
    assert mx.array_equal(drawn.images, sample_bundle(bundle, noise, [3, 3], guidance_scale=1.0).images)


def test_a_model_without_classes_takes_no_labels():
    bundle = _bundle(classes=(), guidance_scale=1.0)
    noise = bundle_noise(bundle, 0, 2)
    assert sample_bundle(bundle, noise).images.shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="takes no class_labels"):
        sample_bundle(bundle, noise, [0, 1])


def test_bad_labels_and_batch_sizes_are_refused_with_their_value(bundle):
    noise = bundle_noise(bundle, 0, 2)
    with pytest.raises(ValueError, match=r"2 noises, labels of shape \(3,\)"):
        sample_bundle(bundle, noise, [0, 1, 2])
    with pytest.raises(ValueError, match="got 0 to 4"):
        sample_bundle(bundle, noise, [0, 4])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sample_bundle(bundle, noise, [0, 1], batch_size=0)


def test_a_strip_shows_the_estimates_along_the_run_and_ends_with_the_image(bundle):
    noise, labels = bundle_noise(bundle, 4, 2), [0, 2]
    grid = uniform_grid(bundle.schedule, 10)
    strip = denoising_strip(bundle, noise, labels, grid, columns=4)
    assert strip.images.shape == (2, 4, 8, 8, 1) and len(strip.sigmas) == 4
    assert strip.sigmas[0] == grid.sigmas[0] and strip.sigmas[-2:] == (grid.sigmas[9], 0.0)
    assert mx.array_equal(strip.images[:, -1], sample_bundle(bundle, noise, labels, grid).images)
    start = noise * (1 + grid.sigmas[0] ** 2) ** 0.5
    first = network_denoiser(bundle.model, bundle.schedule, mx.array(labels), 1.7, 3)(start, grid.sigmas[0])
    np.testing.assert_allclose(np.array(strip.images[:, 0]), np.array(first), atol=1e-5)
    short = denoising_strip(bundle, noise, labels, columns=8)
    assert short.images.shape[1] == 4  # three steps and the image
    with pytest.raises(ValueError, match="got 1"):
        denoising_strip(bundle, noise, labels, columns=1)
