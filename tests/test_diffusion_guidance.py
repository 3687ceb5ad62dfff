"""Guidance against its formulas, diffusers' own code, and a network whose branches are known."""

import math

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.diffusion.guidance import Guidance, rescaled, threshold
from mlx_tasks.samplers import network_denoiser, sample

SCHEDULE = NoiseSchedule(prediction_type="sample")
X = mx.random.normal((3, 4, 4, 2), key=mx.random.key(0))
LABELS, EMPTY = mx.array([0, 1, 1]), 2


class Branches:
    """A network whose x0 for label k is k + 1 + x / 10; it keeps the sizes of the batches it saw."""

    def __init__(self, factor=1.0):
        self.factor, self.batches = factor, []

    def __call__(self, x, t, labels):
        self.batches.append(len(x))
        return self.factor * ((labels + 1.0).reshape(-1, 1, 1, 1) + 0.1 * x)


def test_rescaling_is_that_of_diffusers():
    guided, conditional = (mx.random.normal((2, 5, 5, 3), key=mx.random.key(i)) * (i + 1) for i in range(2))
    for amount in (0.0, 0.4, 1.0):
        theirs = rescale_noise_cfg(torch.tensor(np.array(guided)), torch.tensor(np.array(conditional)), amount)
        # torch's deviation divides by n - 1, in both numerator and denominator
        np.testing.assert_allclose(np.array(rescaled(guided, conditional, amount)), theirs.numpy(), rtol=1e-5)
    full = np.array(rescaled(guided, conditional, 1.0))
    np.testing.assert_allclose(full.std(axis=(1, 2, 3)), np.array(conditional).std(axis=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("largest", [1.0, 1.5, 100.0])
def test_the_dynamic_threshold_is_that_of_diffusers(quantile, largest):
    x0 = 1.7 * mx.random.normal((4, 6, 6, 3), key=mx.random.key(2))
    scheduler = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=largest)
    theirs = scheduler._threshold_sample(torch.tensor(np.array(x0)))
    np.testing.assert_allclose(np.array(threshold(x0, quantile, largest)), theirs.numpy(), atol=1e-6)


def test_an_image_inside_its_range_is_left_alone_by_the_threshold():
    x0 = mx.random.uniform(-1, 1, (2, 4, 4, 1), key=mx.random.key(3))
    assert np.array_equal(np.array(threshold(x0, 0.99)), np.array(x0))
    assert threshold(mx.array([[[[3.0]]]]), 0.5).item() == 1.0


def test_guidance_rests_outside_its_interval_and_is_not_paid_for():
    network = Branches()
    guidance = Guidance(2.0, interval=(0.5, 3.0))
    denoise = network_denoiser(network, SCHEDULE, LABELS, guidance, EMPTY)
    drawn = sample(denoise, X, [5.0, 3.0, 1.0, 0.5, 0.1, 0.0])
    assert network.batches == [3, 6, 6, 3, 3] and drawn.nfe == 7
    inside, outside = denoise(X, 1.0), denoise(X, 5.0)
    alpha = 1 / math.sqrt(2.0)
    worse, better = 3.0, np.array([1.0, 2.0, 2.0]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(np.array(inside), worse + 2 * (better - worse) + 0.1 * alpha * np.array(X), atol=1e-5)
    np.testing.assert_allclose(np.array(outside), better + 0.1 * np.array(X) / math.sqrt(26.0), atol=1e-5)


def test_levels_may_have_scales_of_their_own():
    network = Branches()
    guidance = Guidance(1.0, by_level={3.0: 2.5, 1.0: 0.0})
    denoise = network_denoiser(network, SCHEDULE, LABELS, guidance, EMPTY)
    assert [denoise.evaluations_at(sigma) for sigma in (3.0, 2.0, 1.0)] == [2, 1, 1] and denoise.evaluations == 2
    plain = network_denoiser(network, SCHEDULE, LABELS, 2.5, EMPTY)
    assert mx.array_equal(denoise(X, 3.0), plain(X, 3.0))
    assert mx.array_equal(denoise(X, 1.0), network_denoiser(network, SCHEDULE, LABELS, 0.0, EMPTY)(X, 1.0))


def test_branches_apart_give_what_they_give_in_one_batch():
    together, apart = Branches(), Branches()
    one = network_denoiser(together, SCHEDULE, LABELS, Guidance(3.0), EMPTY)(X, 0.7)
    two = network_denoiser(apart, SCHEDULE, LABELS, Guidance(3.0, batched=False), EMPTY)(X, 0.7)
    assert together.batches == [6] and apart.batches == [3, 3]
    np.testing.assert_allclose(np.array(one), np.array(two), atol=1e-6)


def test_autoguidance_leans_away_from_the_weaker_network():
    strong, weak = Branches(), Branches(0.5)
    denoise = network_denoiser(strong, SCHEDULE, LABELS, Guidance(2.0), guide=weak)
    plain = network_denoiser(strong, SCHEDULE, LABELS)(X, 0.7)
    # strong + (2 - 1) * (strong - strong / 2)
    np.testing.assert_allclose(np.array(denoise(X, 0.7)), 1.5 * np.array(plain), atol=1e-5)
    assert denoise.evaluations == 2 and weak.batches == [3]


def test_a_traced_level_is_guided_like_a_number():
    denoise = network_denoiser(Branches(), SCHEDULE, LABELS, Guidance(2.0, interval=(0.5, 3.0)), EMPTY)
    for sigma in (0.3, 1.0, 5.0):
        np.testing.assert_allclose(np.array(denoise(X, mx.array(sigma))), np.array(denoise(X, sigma)), atol=1e-5)


def test_a_guided_estimate_is_rescaled_then_thresholded():
    guidance = Guidance(4.0, rescale=0.7, dynamic_threshold=0.9)
    denoise = network_denoiser(Branches(), SCHEDULE, LABELS, guidance, EMPTY)
    guided = network_denoiser(Branches(), SCHEDULE, LABELS, 4.0, EMPTY)(X, 1.0)
    better = network_denoiser(Branches(), SCHEDULE, LABELS)(X, 1.0)
    expected = threshold(rescaled(guided, better, 0.7), 0.9)
    np.testing.assert_allclose(np.array(denoise(X, 1.0)), np.array(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": math.nan}, "finite and at least 0"),
        ({"scale": -1.0}, "finite and at least 0"),
        ({"interval": (2.0, 1.0)}, "0 <= low < high"),
        ({"rescale": 1.5}, "rescale must be in"),
        ({"dynamic_threshold": 0.0}, "a quantile in"),
        ({"threshold_max": 0.5}, "at least 1"),
    ],
)
def test_numbers_that_are_no_guidance_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**wrong)


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(ValueError, match="give a guide"):
        network_denoiser(Branches(), SCHEDULE, None, Guidance(2.0))
    with pytest.raises(ValueError, match="class_labels given and null_label None"):
        network_denoiser(Branches(), SCHEDULE, LABELS, Guidance(1.0, by_level={1.0: 3.0}))
