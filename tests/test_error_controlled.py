"""Steps from an error estimate: the tolerance orders the error, and every image goes its own way."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.config_training import Model
from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.diffusion.guidance import Guidance
from mlx_tasks.errors import DataError
from mlx_tasks.learned_steps.error_controlled import Control, sample_within
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers import network_denoiser, sample
from mlx_tasks.samplers.driver import SamplerDivergedError

NOISE = mx.random.normal((64, 2, 2, 1), key=mx.random.key(0))
SPREADS = np.where(np.arange(64) % 2, 0.9, 0.05)
FINE = (*np.geomspace(30.0, 0.0005, 400).tolist(), 0.0)


def two_modes(x, sigma, spread):
    """The exact denoiser of pixels near -1 or +1: how near is each image's own spread."""
    variance = spread**2 + sigma**2
    return (spread**2 * x + sigma**2 * mx.tanh(x / variance)) / variance


def rows_of(rows, counted=None):
    spread = mx.array(SPREADS[rows].astype(np.float32)).reshape(-1, 1, 1, 1)

    def run(x, sigma):
        if counted is not None:
            counted.append(len(rows))
        level = sigma.reshape(-1, 1, 1, 1) if isinstance(sigma, mx.array) else sigma
        return two_modes(x, level, spread)

    return run


@pytest.fixture(scope="module")
def truth():
    return np.array(sample(rows_of(np.arange(64)), NOISE, FINE, "dpmpp_2m").images)


def errors(images, truth):
    return np.sqrt(((np.array(images) - truth) ** 2).mean(axis=(1, 2, 3)))


def test_a_smaller_tolerance_costs_more_and_errs_less(truth):
    found = [sample_within(rows_of, NOISE, Control(tolerance)) for tolerance in (0.1, 0.03, 0.01, 0.003)]
    calls = [drawn.nfe.mean() for drawn in found]
    missed = [errors(drawn.images, truth).mean() for drawn in found]
    assert calls == sorted(calls) and calls[-1] > 3 * calls[0]
    assert missed == sorted(missed, reverse=True) and missed[-1] < 0.01 < 0.1 < missed[0]


def test_the_estimate_is_of_the_second_order(truth):
    """The pair's difference goes as h^2 and the error left as h^2 over a whole run: calls go as tolerance^-1/2."""
    calls = [sample_within(rows_of, NOISE, Control(tolerance, most=200)).nfe.mean() for tolerance in (4e-4, 1e-4)]
    assert calls[1] / calls[0] == pytest.approx(2.0, rel=0.25)


def test_images_take_what_they_need_and_leave():
    counted = []
    drawn = sample_within(lambda rows: rows_of(rows, counted), NOISE, Control(0.01))
    hard, easy = drawn.nfe[SPREADS < 0.5], drawn.nfe[SPREADS > 0.5]
    assert abs(hard.mean() - easy.mean()) > 1.0
    assert sum(counted) == drawn.nfe.sum() and len(counted) == drawn.nfe.max()
    assert [len(levels) for levels in drawn.levels] == drawn.nfe.tolist()
    assert all(list(levels) == sorted(levels, reverse=True) and levels[0] == 30.0 for levels in drawn.levels)


def test_an_image_is_the_same_alone_and_in_company():
    together = sample_within(rows_of, NOISE, Control(0.02))
    for i in (0, 1, 7):
        alone = sample_within(lambda rows, i=i: rows_of(np.array([i])), NOISE[i : i + 1], Control(0.02))
        np.testing.assert_allclose(np.array(alone.images[0]), np.array(together.images[i]), atol=2e-6)
        assert alone.levels[0] == pytest.approx(together.levels[i])


def test_a_network_is_told_each_images_own_level():
    model = Model(block_out_channels=(8, 8), attention_levels=(False, False), norm_num_groups=4)
    network = UNet2DModel(UNet2DConfig.build(model, 4, 1, 3, "silu"), mx.random.key(3))
    network.conv_out.weight = 0.1 * mx.random.normal(network.conv_out.weight.shape, key=mx.random.key(4))
    labels, x = mx.array([0, 1, 1]), mx.random.normal((3, 4, 4, 1), key=mx.random.key(5))
    for guidance in (Guidance(1.0), Guidance(2.0), Guidance(2.0, interval=(0.5, 3.0))):
        denoise = network_denoiser(network, NoiseSchedule.cosine(), labels, guidance, 2)
        levels = [0.1, 1.0, 7.0]
        together = denoise(x, mx.array(levels))
        for i, level in enumerate(levels):
            one = network_denoiser(network, NoiseSchedule.cosine(), labels[i : i + 1], guidance, 2)(x[i : i + 1], level)
            np.testing.assert_allclose(np.array(together[i]), np.array(one[0]), atol=2e-5)


def test_an_estimate_that_is_not_finite_is_named():
    def broken(rows):
        run = rows_of(rows)
        return lambda x, sigma: run(x, sigma) * mx.where(sigma.max() < 3.0, mx.array(float("nan")), 1.0)

    with pytest.raises(SamplerDivergedError, match=r"not after step \d+ from sigma [0-2]\.") as error:
        sample_within(broken, NOISE, Control(0.01))
    assert error.value.sigma < 3.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tolerance": 0.0}, r"tolerance must be finite and above 0, got 0\.0"),
        ({"tolerance": float("nan")}, "tolerance must be finite"),
        ({"tolerance": 0.1, "longest": -1.0}, r"longest must be finite and above 0, got -1\.0"),
        ({"tolerance": 0.1, "most": 1}, "most must be at least 2"),
    ],
)
def test_limits_that_are_none_are_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        Control(**wrong)


def test_the_most_calls_are_kept():
    drawn = sample_within(rows_of, NOISE, Control(1e-5, most=7))
    assert drawn.nfe.tolist() == [7] * 64 and not drawn.met.any()
    assert sample_within(rows_of, NOISE, Control(0.05)).met.all()
