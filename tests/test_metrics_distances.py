"""KID, precision and recall, the two-sample test, Wilson's interval: against plain loops, sklearn and scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics.pairwise import polynomial_kernel as sklearn_kernel
from sklearn.neighbors import NearestNeighbors

from mlx_tasks.metrics.c2st import two_sample_test
from mlx_tasks.metrics.estimate import share
from mlx_tasks.metrics.kid import kid, polynomial_kernel
from mlx_tasks.metrics.precision_recall import precision_recall


def _kid_by_loops(a, b):
    def k(x, y):
        return (float(x @ y) / a.shape[1] + 1) ** 3

    within_a = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    within_b = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    return within_a + within_b - 2 * np.mean([k(x, y) for x, y in itertools.product(a, b)])


def test_the_kernel_is_sklearns():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 5)), rng.normal(size=(7, 5))
    np.testing.assert_allclose(
        polynomial_kernel(a, b), sklearn_kernel(a, b, degree=3, gamma=1 / 5, coef0=1), rtol=1e-12
    )


def test_kid_equals_plain_loops_over_all_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(12, 6)), rng.normal(size=(9, 6)) + 0.5
    assert kid(a, b).value == pytest.approx(_kid_by_loops(a, b), rel=1e-10)


def test_kids_deviation_is_the_jackknifes_by_leaving_rows_out():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(15, 4)), rng.normal(size=(11, 4)) + 0.3
    left_a = np.array([_kid_by_loops(np.delete(a, i, 0), b) for i in range(15)])
    left_b = np.array([_kid_by_loops(a, np.delete(b, j, 0)) for j in range(11)])
    variance = 14 / 15 * ((left_a - left_a.mean()) ** 2).sum() + 10 / 11 * ((left_b - left_b.mean()) ** 2).sum()
    found = kid(a, b, confidence=0.9)
    assert found.high - found.low == pytest.approx(2 * stats.norm.ppf(0.95) * np.sqrt(variance), rel=1e-8)


def test_kid_is_unbiased_for_equal_sources_and_its_interval_holds_zero_as_often_as_it_says():
    """Under equal sources the statistic is degenerate and the jackknife too wide, never too narrow."""
    rng = np.random.default_rng(3)
    found = [kid(rng.normal(size=(60, 8)), rng.normal(size=(60, 8))) for _ in range(300)]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(300)
    assert np.mean([f.low <= 0 <= f.high for f in found]) >= 0.92


def test_kids_interval_holds_the_true_distance_of_different_sources_as_often_as_it_says():
    """Means apart by m in each of D: E k over N(m, I), N(0, I) in closed form is E (1 + x.y/D)^3."""
    dims, shift, rng = 4, 0.5, np.random.default_rng(4)
    big = np.random.default_rng(5)
    x, x2, y, y2 = (big.normal(size=(400_000, dims)) + m for m in (shift, shift, 0, 0))
    mean_kernel = [((p * q).sum(1) / dims + 1) ** 3 for p, q in ((x, x2), (y, y2), (x, y))]
    truth = mean_kernel[0].mean() + mean_kernel[1].mean() - 2 * mean_kernel[2].mean()
    found = [
        kid(rng.normal(size=(100, dims)) + shift, rng.normal(size=(100, dims)), confidence=0.9) for _ in range(200)
    ]
    assert 0.82 <= np.mean([f.low <= truth <= f.high for f in found]) <= 0.96


def test_precision_and_recall_equal_sklearns_neighbours():
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(120, 5)), rng.normal(size=(100, 5)) * 0.6 + 0.4

    def inside(points, manifold):
        radii = NearestNeighbors(n_neighbors=4).fit(manifold).kneighbors(manifold)[0][:, -1]  # the row itself, then 3
        return np.mean([(np.linalg.norm(manifold - p, axis=1) <= radii).any() for p in points])

    precision, recall = precision_recall(fake, real)
    assert precision.value == pytest.approx(inside(fake, real))
    assert recall.value == pytest.approx(inside(real, fake))


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision():
    rng = np.random.default_rng(7)
    left, right = rng.normal(size=(100, 3)), rng.normal(size=(100, 3)) + 20
    both = np.concatenate([left, right])
    one = np.concatenate([left, rng.normal(size=(100, 3))])
    precision, recall = precision_recall(one, both)
    assert precision.value > 0.8 and recall.value < 0.55
    precision, recall = precision_recall(both, one)
    assert precision.value < 0.55 and recall.value > 0.8
    with pytest.raises(ValueError, match=r"got 3 for 3 and 200"):
        precision_recall(left[:3], both)


def test_wilsons_interval_is_scipys():
    hits = np.arange(50) < 37
    oracle = stats.binomtest(37, 50).proportion_ci(0.95, method="wilson")
    found = share(hits, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.74, oracle.low, oracle.high), rel=1e-10)
    assert share(np.ones(20, bool)).high == 1.0


def _images(rng, count, shift=0):
    return np.clip(rng.normal(128 + shift, 40, size=(count, 8, 8, 1)), 0, 255).astype(np.uint8)


def test_the_two_sample_test_keeps_quiet_about_equal_sources():
    """False alarms at 5 % in 60 tests: folds share images, so a little over 5 % is expected; 12 would be a defect."""
    rng = np.random.default_rng(8)
    alarms, accuracies = 0, []
    for seed in range(60):
        a, b = _images(rng, 100), _images(rng, 100)
        found = two_sample_test(a, b, rng.normal(size=(100, 6)), rng.normal(size=(100, 6)), seed)
        alarms += found.p_value < 0.05
        accuracies.append(found.accuracy.value)
    assert alarms < 12
    assert 0.47 < np.mean(accuracies) < 0.53


def test_the_two_sample_test_finds_a_shift_in_pixels_and_one_in_features():
    rng = np.random.default_rng(9)
    same = rng.normal(size=(200, 6))
    brighter = two_sample_test(_images(rng, 200, 6), _images(rng, 200), same, same, 0)
    assert brighter.p_value < 1e-3 and brighter.accuracy.low > 0.5
    moved = two_sample_test(_images(rng, 200), _images(rng, 200), same + 1, same[::-1], 0)
    assert moved.p_value < 1e-6


def test_the_two_sample_tests_p_value_is_the_binomials():
    rng = np.random.default_rng(10)
    found = two_sample_test(
        _images(rng, 50, 3), _images(rng, 50), rng.normal(size=(50, 3)), rng.normal(size=(50, 3)), 1
    )
    right = round(found.accuracy.value * 100)
    assert found.p_value == pytest.approx(stats.binomtest(right, 100, alternative="greater").pvalue, rel=1e-9)


def test_the_two_sample_test_wants_pixels_as_the_data_has_them():
    images = np.zeros((20, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match="must be uint8, got float32"):
        two_sample_test(images, images, np.zeros((20, 2)), np.zeros((20, 2)), 0)
