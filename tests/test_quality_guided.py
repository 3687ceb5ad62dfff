"""Stopping early: the promise holds on noises that it was not made on, and images that left change nothing."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.errors import DataError
from mlx_tasks.learned_steps.quality_guided import QualityGuidedSampler
from mlx_tasks.samplers import sample

SIGMAS = (*np.geomspace(30.0, 0.02, 14).tolist(), 0.0)
FINE = (*np.geomspace(30.0, 0.002, 160).tolist(), 0.0)


def faint_or_bold(x, sigma):
    """The exact denoiser of images that are all faint (variance 0.0025) or all bold (1): faint ones settle later, and
    which one an image is shows only on the way."""
    variances = (0.0025, 1.0)
    square, pixels = x.square().sum(axis=(1, 2, 3), keepdims=True), x[0].size
    totals = [v + sigma**2 for v in variances]
    logs = mx.concatenate([-square / (2 * t) - 0.5 * pixels * np.log(t) for t in totals], axis=-1)
    shares = mx.softmax(logs, axis=-1)
    return sum(shares[..., i : i + 1] * (v / t) * x for i, (v, t) in enumerate(zip(variances, totals, strict=True)))


class Counted:
    """A denoiser of rows that keeps how many images it was asked about."""

    def __init__(self):
        self.asked = 0

    def __call__(self, rows):
        def run(x, sigma):
            assert len(x) == len(rows)
            self.asked += len(rows)
            return faint_or_bold(x, sigma)

        return run


def noises(seed, count):
    noise = mx.random.normal((count, 2, 2, 1), key=mx.random.key(seed))
    return noise, np.array(sample(faint_or_bold, noise, FINE, "dpmpp_2m").images)


@pytest.fixture(scope="module")
def sampler():
    return QualityGuidedSampler.calibrate(Counted(), *noises(1, 1500), SIGMAS)


def errors(images, truth):
    return np.sqrt(((np.array(images) - truth) ** 2).mean(axis=(1, 2, 3)))


@pytest.mark.parametrize("coverage", [0.8, 0.95])
@pytest.mark.parametrize("tolerance", [0.03, 0.06, 0.15])
def test_the_error_promised_is_the_error_it_has(sampler, tolerance, coverage):
    noise, truth = noises(2, 3000)
    drawn = sampler.sample(Counted(), noise, tolerance, coverage=coverage)
    assert drawn.early.mean() > 0.3
    too_early = (drawn.early & (errors(drawn.images, truth) > tolerance)).mean()
    allowed = 1 - coverage
    # the margin itself is set on 750 noises, so the share may be off by their chance as well as by the test's
    assert too_early <= allowed + 3 * np.sqrt(allowed * coverage * (1 / 750 + 1 / 3000))


def test_the_expected_error_is_about_the_error(sampler):
    noise, truth = noises(8, 1000)
    drawn = sampler.sample(Counted(), noise, 0.06)
    ratio = errors(drawn.images, truth)[drawn.early] / drawn.expected[drawn.early]
    assert 0.5 < np.median(ratio) < 2


def test_a_looser_tolerance_takes_fewer_calls_and_nobody_else_pays(sampler):
    noise, truth = noises(3, 400)
    runs = {}
    for tolerance in (0.02, 0.1, 0.5):
        counted = Counted()
        runs[tolerance] = sampler.sample(counted, noise, tolerance)
        assert counted.asked == runs[tolerance].nfe.sum()  # finished images leave the batch
    means = [runs[t].nfe.mean() for t in (0.02, 0.1, 0.5)]
    assert means[0] > means[1] > means[2] >= 2
    assert errors(runs[0.02].images, truth).mean() < errors(runs[0.5].images, truth).mean()
    bold = np.abs(truth).mean(axis=(1, 2, 3)) > 0.2
    assert abs(runs[0.1].nfe[bold].mean() - runs[0.1].nfe[~bold].mean()) > 1  # steps go where they are needed


def test_an_image_does_not_depend_on_its_company(sampler):
    noise, _ = noises(4, 20)
    whole = sampler.sample(Counted(), noise, 0.05)
    for i in (0, 7, 19):
        alone = sampler.sample(Counted(), noise[i : i + 1], 0.05)
        assert alone.nfe[0] == whole.nfe[i]
        np.testing.assert_allclose(np.array(alone.images[0]), np.array(whole.images[i]), atol=1e-5)


def test_an_image_that_is_never_good_enough_is_the_whole_run(sampler):
    noise, _ = noises(5, 6)
    drawn = sampler.sample(Counted(), noise, 1e-9)
    assert np.all(drawn.nfe == 14) and not drawn.early.any()
    np.testing.assert_allclose(
        np.array(drawn.images), np.array(sample(faint_or_bold, noise, SIGMAS, "dpmpp_2m").images), atol=1e-5
    )


def test_minimum_maximum_and_patience(sampler):
    noise, _ = noises(6, 50)
    assert sampler.sample(Counted(), noise, 1e9).nfe.max() == 2
    assert set(sampler.sample(Counted(), noise, 1e9, minimum=5).nfe) == {5}
    assert sampler.sample(Counted(), noise, 1e-9, maximum=6).nfe.max() == 6
    patient = sampler.sample(Counted(), noise, 0.1, patience=3)
    assert patient.nfe.min() == 4  # a change from the second call on, small in three running
    with pytest.raises(DataError, match=r"2 <= minimum <= maximum \(4\), got 0.1, 0.9, 1, 6"):
        sampler.sample(Counted(), noise, 0.1, minimum=6, maximum=4)
    with pytest.raises(DataError, match="tolerance must be above 0"):
        sampler.sample(Counted(), noise, 0.0)


def test_it_comes_back_from_disk_and_asks_for_enough_noises(sampler, tmp_path):
    sampler.save(tmp_path / "q.json")
    assert QualityGuidedSampler.load(tmp_path / "q.json") == sampler
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(DataError, match="no saved QualityGuidedSampler"):
        QualityGuidedSampler.load(tmp_path / "q.json")
    with pytest.raises(DataError, match="at least 20 noises are needed, half of them for margins, got 10"):
        QualityGuidedSampler.calibrate(Counted(), *noises(7, 10), SIGMAS)


def test_too_few_noises_for_a_coverage_stop_nothing():
    """Of ten noises for the margin none may be missed at 95 %: (0 + 1) / 11 is above 0.05."""
    small = QualityGuidedSampler.calibrate(Counted(), *noises(9, 20), SIGMAS)
    assert small.margin(0.1, 0.95, 1, 2, 14) == np.inf
    assert not small.sample(Counted(), noises(10, 8)[0], 0.1, coverage=0.95).early.any()
