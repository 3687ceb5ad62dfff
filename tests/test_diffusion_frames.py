"""The frames a network may work in: what each output means, against the definition of what it was trained to say."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.diffusion.frames import EdmFrame, FlowFrame
from mlx_tasks.errors import DataError
from mlx_tasks.samplers import network_denoiser, sample

X0 = mx.random.uniform(-1, 1, (2, 3, 3, 1), key=mx.random.key(0))
EPS = mx.random.normal((2, 3, 3, 1), key=mx.random.key(1))
SIGMAS = (1e-3, 0.3, 1.0, 7.0, 60.0)


def test_a_perfect_velocity_gives_the_image_back():
    frame = FlowFrame()
    for sigma in SIGMAS:
        found = frame.x0_from_output(EPS - X0, X0 + sigma * EPS, sigma)
        np.testing.assert_allclose(np.array(found), np.array(X0), atol=3e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_perfect_edm_output_gives_the_image_back(kind):
    frame = EdmFrame(sigma_data=0.7, prediction_type=kind)
    for sigma in SIGMAS:
        x = X0 + sigma * EPS
        skip = 0.49 / (sigma**2 + 0.49)
        out = sigma * 0.7 / math.sqrt(sigma**2 + 0.49) * (1 if kind == "epsilon" else -1)
        found = frame.x0_from_output((X0 - skip * x) / out, x, sigma)
        np.testing.assert_allclose(np.array(found), np.array(X0), atol=1e-5)


def test_edm_inputs_and_targets_have_unit_variance():
    """The defining property of EDM's preconditioning (Karras et al. 2022, Appendix B.6), for data of sigma_data."""
    rng, frame = np.random.default_rng(0), EdmFrame(sigma_data=0.5)
    x0, eps = 0.5 * rng.standard_normal(200_000), rng.standard_normal(200_000)
    for sigma in (0.05, 0.5, 10.0):
        x = x0 + sigma * eps
        skip, out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / math.sqrt(sigma**2 + 0.25)
        assert (frame.input_scale(sigma) * x).std() == pytest.approx(1.0, abs=0.01)
        assert ((x0 - skip * x) / out).std() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_a_variance_preserving_network_is_understood(kind):
    schedule = NoiseSchedule(prediction_type=kind)
    for sigma in (0.1, 1.0, 7.0):
        alpha = schedule.input_scale(sigma)
        output = {"epsilon": EPS, "sample": X0, "v_prediction": alpha * EPS - sigma * alpha * X0}[kind]
        found = schedule.x0_from_output(output, X0 + sigma * EPS, sigma)
        np.testing.assert_allclose(np.array(found), np.array(X0), atol=1e-5)


@pytest.mark.parametrize("frame", [FlowFrame(shift=3.0), EdmFrame(), NoiseSchedule()])
def test_a_traced_level_means_what_the_number_means(frame):
    for sigma in (0.02, 1.0, 20.0):
        traced = mx.array(sigma)
        assert float(frame.input_scale(traced)) == pytest.approx(float(frame.input_scale(sigma)), rel=1e-5)
        assert float(frame.t_from_sigma(traced)) == pytest.approx(float(frame.t_from_sigma(sigma)), rel=1e-4)


def test_the_shift_keeps_the_ends_and_moves_the_middle_towards_noise():
    frame = FlowFrame(shift=3.0)
    assert frame.shifted(0.0) == 0.0 and frame.shifted(1.0) == 1.0
    assert frame.shifted(0.5) == 0.75  # 3 * 0.5 / (1 + 2 * 0.5)
    levels = frame.sigmas(4)
    assert levels[0] == FlowFrame.SIGMA_MAX and levels[-1] == 0.0 and len(levels) == 5
    np.testing.assert_allclose(levels[1:4], [9.0, 3.0, 1.0])  # t = 0.9, 0.75, 0.5


def test_edm_levels_are_karras_own():
    levels = EdmFrame().sigmas(18)
    assert levels[0] == pytest.approx(80.0) and levels[-2] == pytest.approx(0.002) and levels[-1] == 0.0
    i = 5
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert levels[i] == pytest.approx(expected)


@pytest.mark.parametrize("frame", [FlowFrame(), FlowFrame(shift=2.0), EdmFrame(sigma_max=300.0)])
def test_a_network_of_any_frame_draws_the_gaussian_it_was_made_for(frame):
    """Data N(0.2, 0.3^2): the exact network of each frame, sampled from pure noise, gives that mean and deviation."""

    def network(scaled, t, labels):
        sigma = float(level)
        x = scaled / frame.input_scale(sigma)
        x0 = (0.09 * x + sigma**2 * 0.2) / (0.09 + sigma**2)
        if isinstance(frame, FlowFrame):
            return (x - x0) / sigma - x0
        total = sigma**2 + 0.25
        return (x0 - 0.25 / total * x) * math.sqrt(total) / (0.5 * sigma)

    denoiser = network_denoiser(network, frame)

    def denoise(x, sigma):
        nonlocal level
        level = sigma
        return denoiser(x, sigma)

    level = 0.0
    noise = mx.random.normal((4000, 1, 1, 1), key=mx.random.key(5))
    images = np.array(sample(denoise, noise, frame.sigmas(40), "dpmpp_2m").images)
    assert images.mean() == pytest.approx(0.2 + 0.3 * float(mx.mean(noise)), abs=0.005)
    assert images.std() == pytest.approx(0.3 * float(mx.std(noise)), rel=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowFrame(shift=0.0), "shift must be above 0"),
        (lambda: FlowFrame().sigmas(0), "at least 1 step"),
        (lambda: EdmFrame(sigma_min=1.0, sigma_max=0.5), "0 < sigma_min < sigma_max"),
        (lambda: EdmFrame(prediction_type="sample"), "prediction_type 'sample'"),
        (lambda: EdmFrame().sigmas(0), "at least 1 step"),
    ],
)
def test_frames_that_are_none_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()
