"""The Frechet distance against scipy's matrix square root, closed forms and itself."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from mlx_tasks.metrics.bootstrap import bootstrap_mean, centred_bootstrap
from mlx_tasks.metrics.frechet import frechet_distance, gaussian_frechet_distance


def _by_sqrtm(mean_a, cov_a, mean_b, cov_b):
    """Heusel et al.'s own form: a square root of the (non-symmetric) product."""
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b))))


@pytest.mark.parametrize("seed", range(4))
def test_equals_scipys_matrix_square_root(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(200, 24)) @ rng.normal(size=(24, 24)), rng.normal(size=(150, 24)) + 0.3
    oracle = _by_sqrtm(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert frechet_distance(a, b) == pytest.approx(oracle, rel=1e-6)


def test_equals_scipy_where_covariances_are_singular():
    """Twelve rows span at most eleven of twenty directions. scipy's root of a singular product is not defined, so it
    is given the same two matrices with 1e-13 on the diagonal."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(12, 20)), 1.5 * rng.normal(size=(12, 20))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    assert np.linalg.matrix_rank(cov_a) == 11
    tiny = 1e-13 * np.eye(20)
    oracle = _by_sqrtm(a.mean(0), cov_a + tiny, b.mean(0), cov_b + tiny)
    assert frechet_distance(a, b) == pytest.approx(oracle, rel=1e-6)


def test_equals_the_closed_form_of_disjoint_singular_gaussians():
    """Supports that meet in the mean only: nothing overlaps, so d = |mu|^2 + tr A + tr B."""
    cov_a, cov_b = np.diag([2.0, 3.0, 0, 0]), np.diag([0, 0, 5.0, 7.0])
    mean = np.array([1.0, 2.0, 0, 0])
    assert gaussian_frechet_distance(mean, cov_a, 0 * mean, cov_b) == pytest.approx(5 + 17, rel=1e-12)


def test_equals_the_closed_form_of_commuting_covariances():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25])
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum() + 9
    assert gaussian_frechet_distance(np.zeros(3), np.diag(a), np.array([3.0, 0, 0]), np.diag(b)) == pytest.approx(
        expected, rel=1e-12
    )


def test_is_zero_for_equal_sets_and_symmetric_and_blind_to_rotation():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(90, 16)), rng.normal(size=(80, 16)) * 1.2
    q = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    assert frechet_distance(a, a) < 1e-12
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a @ q, b @ q) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_shapes_and_numbers_it_cannot_compare_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5, 4\)"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.full((5, 3), np.nan), np.zeros((5, 3)))


def test_plain_percentiles_would_miss_the_estimate_and_centred_ones_hold_it():
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(100, 32)), rng.normal(size=(100, 32))
    picks = [(rng.integers(100, size=100), rng.integers(100, size=100)) for _ in range(60)]
    plain = [frechet_distance(a[i], b[j]) for i, j in picks]
    centred = centred_bootstrap(frechet_distance, a, b, 60, 0.95, seed=0)
    assert np.quantile(plain, 0.025) > centred.value
    assert centred.low <= centred.value <= centred.high


def test_the_interval_covers_the_statistics_mean_at_these_counts_about_as_often_as_it_says():
    """What the interval speaks of is the mean of the estimate over fresh samples of equal counts; 90 % intervals of
    100 pairs should hold it in 84 to 97 of them (the binomial's 98 % range), here with room for 60 resamples."""
    rng = np.random.default_rng(9)
    scale = np.linspace(0.5, 2, 8)
    pairs = [(rng.normal(size=(80, 8)) * scale, rng.normal(size=(80, 8)) + 0.25) for _ in range(400)]
    truth = np.mean([frechet_distance(a, b) for a, b in pairs])
    held = 0
    for k, (a, b) in enumerate(pairs[:100]):
        found = centred_bootstrap(frechet_distance, a, b, 60, 0.9, seed=k)
        held += found.low <= truth <= found.high
    assert 80 <= held <= 98


def test_the_bootstrap_of_a_mean_has_the_means_own_deviation():
    values = np.random.default_rng(10).normal(3, 2, 500)
    found = bootstrap_mean(values, 4000, 0.95, seed=1)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.05)


def test_resampling_is_the_same_again_with_the_same_seed():
    rng = np.random.default_rng(11)
    a, b = rng.normal(size=(40, 4)), rng.normal(size=(40, 4))
    assert centred_bootstrap(frechet_distance, a, b, 20, 0.9, 3) == centred_bootstrap(
        frechet_distance, a, b, 20, 0.9, 3
    )
    with pytest.raises(ValueError, match="at least 2 resamples, got 1"):
        centred_bootstrap(frechet_distance, a, b, 1, 0.9, 3)
