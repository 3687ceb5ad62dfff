"""Conversions, losses and guidance: algebra and closed forms."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_tasks.diffusion import classifier_free, drop_labels, min_snr_weight, weighted_mse
from mlx_tasks.diffusion import parameterization as p

ANGLES = st.floats(0.05, np.pi / 2 - 0.05)


def _point(angle, seed=0):
    """x0, eps, x, v, alpha, std at a noise level given as an angle: alpha = cos, std = sin."""
    x0, eps = mx.random.normal((2, 3, 4, 4, 1), key=mx.random.key(seed))
    alpha, std = mx.array(np.cos(angle), dtype=mx.float32), mx.array(np.sin(angle), dtype=mx.float32)
    return x0, eps, p.x_from_x0_eps(x0, eps, alpha, std), p.v_from_x0_eps(x0, eps, alpha, std), alpha, std


@given(ANGLES)
@settings(max_examples=40, deadline=None)
def test_every_prediction_gives_the_image_and_the_noise_back(angle):
    x0, eps, x, v, alpha, std = _point(angle)
    for got, wanted in [
        (p.x0_from_v(x, v, alpha, std), x0),
        (p.eps_from_v(x, v, alpha, std), eps),
        (p.x0_from_eps(x, eps, alpha, std), x0),
        (p.eps_from_x0(x, x0, alpha, std), eps),
        (p.v_from_x0(x, x0, alpha, std), v),
        (p.v_from_eps(x, eps, alpha, std), v),
    ]:
        np.testing.assert_allclose(np.array(got), np.array(wanted), atol=2e-4)


def test_v_agrees_with_diffusers():
    import torch
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    from mlx_tasks.diffusion import NoiseSchedule

    schedule = NoiseSchedule.cosine()
    x0, eps = np.random.default_rng(0).normal(size=(2, 5, 4, 4, 1)).astype(np.float32)
    t = np.array([0, 10, 400, 900, 999])
    alpha, std = (p.per_image(f(mx.array(t)), mx.array(x0)) for f in (schedule.alpha, schedule.std))
    ours = np.array(p.v_from_x0_eps(mx.array(x0), mx.array(eps), alpha, std))
    theirs = scheduler.get_velocity(torch.tensor(x0), torch.tensor(eps), torch.tensor(t)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    noised = scheduler.add_noise(torch.tensor(x0), torch.tensor(eps), torch.tensor(t)).numpy()
    np.testing.assert_allclose(np.array(p.x_from_x0_eps(mx.array(x0), mx.array(eps), alpha, std)), noised, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weight_is_its_definition(gamma):
    angle = np.linspace(0.01, np.pi / 2 - 0.01, 50)
    snr = 1 / np.tan(angle) ** 2
    ours = min_snr_weight(mx.array(np.cos(angle)), mx.array(np.sin(angle)), gamma)
    np.testing.assert_allclose(np.array(ours), np.minimum(snr, gamma) / (snr + 1), rtol=1e-5)


def test_min_snr_weighted_v_loss_is_the_capped_x0_loss():
    """Hang et al.: the weight on the x0 loss is min(snr, gamma); (v error)^2 = (snr + 1) * (x0 error)^2."""
    x0, _, x, v, alpha, std = _point(0.6)
    guess = v + 0.1
    capped = min((float(alpha) / float(std)) ** 2, 5.0)
    x0_loss = float(mx.mean((p.x0_from_v(x, guess, alpha, std) - x0) ** 2))
    weight = mx.broadcast_to(min_snr_weight(alpha, std, 5.0), (3,))
    assert float(weighted_mse(guess, v, weight)) == pytest.approx(capped * x0_loss, rel=1e-4)


def test_weighted_mse_weighs_images_and_not_pixels():
    prediction, target = mx.zeros((2, 2, 2, 1)), mx.stack([mx.ones((2, 2, 1)), 3 * mx.ones((2, 2, 1))])
    assert float(weighted_mse(prediction, target)) == pytest.approx(5.0)
    assert float(weighted_mse(prediction, target, mx.array([1.0, 0.5]))) == pytest.approx(0.5 * (1 + 0.5 * 9))


def test_guidance_is_affine_between_its_branches():
    u, c = mx.random.normal((2, 2, 4, 4, 1), key=mx.random.key(1))
    assert mx.allclose(classifier_free(u, c, 0.0), u)
    assert mx.allclose(classifier_free(u, c, 1.0), c, atol=1e-6)
    assert mx.allclose(classifier_free(u, c, 3.0), 3 * c - 2 * u, atol=1e-5)


def test_guiding_v_guides_x0_and_eps_alike():
    _, _, x, v, alpha, std = _point(0.9)
    other = v + 0.3
    guided = classifier_free(other, v, 2.5)
    for convert in (p.x0_from_v, p.eps_from_v):
        pair = classifier_free(convert(x, other, alpha, std), convert(x, v, alpha, std), 2.5)
        np.testing.assert_allclose(np.array(convert(x, guided, alpha, std)), np.array(pair), atol=1e-5)


def test_labels_are_dropped_at_the_given_rate_and_by_the_key_alone():
    labels = mx.arange(20000) % 10
    key = mx.random.key(7)
    dropped = drop_labels(labels, 10, 0.1, key)
    assert mx.array_equal(dropped, drop_labels(labels, 10, 0.1, key))
    rate = float(mx.mean(dropped == 10))
    assert abs(rate - 0.1) < 4 * (0.09 / 20000) ** 0.5  # four standard errors
    assert mx.array_equal(mx.where(dropped == 10, labels, dropped), labels)
    assert mx.array_equal(drop_labels(labels, 10, 0.0, key), labels)
    assert bool(mx.all(drop_labels(labels, 10, 1.0, key) == 10))
    assert dropped.dtype == labels.dtype
