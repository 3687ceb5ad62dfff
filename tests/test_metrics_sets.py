"""FID-infinity, published KID, Inception Score, density, coverage, CMMD, memorisation: against plain numpy."""

import numpy as np
import pytest
from scipy import stats

from mlx_tasks.metrics import neighbours
from mlx_tasks.metrics.cmmd import cmmd
from mlx_tasks.metrics.density_coverage import density_coverage
from mlx_tasks.metrics.fid_infinity import fid_infinity
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.inception_score import inception_score
from mlx_tasks.metrics.kid import kid, subset_kid
from mlx_tasks.metrics.memorisation import memorisation
from mlx_tasks.metrics.precision_recall import precision_recall


def test_fid_infinity_takes_the_bias_of_the_count_out():
    """Equal unit Gaussians in D = 16 against a real set of its own finite count, whose bias alone must remain."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(20_000, 16))
    found = [fid_infinity(rng.normal(size=(600, 16)), real, seed, smallest=60).value for seed in range(20)]
    plain = [frechet_distance(rng.normal(size=(600, 16)), real) for _ in range(20)]
    assert np.mean(plain) > 0.05
    assert abs(np.mean(found)) < 0.2 * np.mean(plain)


def test_fid_infinity_says_how_many_images_it_needs():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least 131 images"):
        fid_infinity(rng.normal(size=(100, 64)), rng.normal(size=(100, 64)), 0)


def test_subset_kid_is_the_mean_and_deviation_of_kid_over_the_same_subsets():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(60, 5)), rng.normal(size=(50, 5)) + 0.4
    found = subset_kid(a, b, seed=3, subsets=8, size=20)
    generator = np.random.Generator(np.random.PCG64([3, 60, 50]))
    plain = [
        kid(a[generator.choice(60, 20, replace=False)], b[generator.choice(50, 20, replace=False)]).value
        for _ in range(8)
    ]
    assert (found.mean, found.deviation) == (pytest.approx(np.mean(plain)), pytest.approx(np.std(plain)))
    assert subset_kid(a, b, 0, subsets=2).size == 50
    assert found.mean == pytest.approx(kid(a, b).value, abs=4 * found.deviation / 8**0.5)


def test_inception_score_of_certain_and_of_clueless_classifiers():
    sure = 50.0 * np.eye(10)[np.repeat(np.arange(10), 40)]
    assert inception_score(sure, splits=2).value == pytest.approx(10.0, rel=0.05)
    assert inception_score(np.zeros((40, 10)), splits=4).value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="got 5 images"):
        inception_score(np.zeros((5, 10)), splits=4)


def test_inception_score_equals_its_definition():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(30, 6))
    order = np.random.Generator(np.random.PCG64([0, 30])).permutation(30)
    scores = []
    for part in np.array_split(order, 3):
        p = np.exp(logits[part]) / np.exp(logits[part]).sum(1, keepdims=True)
        scores.append(np.exp(np.mean([(row * np.log(row / p.mean(0))).sum() for row in p])))
    assert inception_score(logits, splits=3).value == pytest.approx(np.mean(scores), rel=1e-12)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)


def _density_coverage_by_loops(generated, real, k):
    reach = [
        sorted(np.linalg.norm(r - other) for j, other in enumerate(real) if j != i)[k - 1] for i, r in enumerate(real)
    ]
    inside = np.array([[np.linalg.norm(g - r) <= d for r, d in zip(real, reach, strict=True)] for g in generated])
    return inside.sum() / k / len(generated), inside.any(0).mean()


def test_density_and_coverage_equal_plain_loops_in_any_blocks(small_blocks):
    rng = np.random.default_rng(3)
    generated, real = rng.normal(size=(23, 4)) * 0.8, rng.normal(size=(31, 4))
    density, coverage = density_coverage(generated, real, neighbours=3)
    plain = _density_coverage_by_loops(generated, real, 3)
    assert (density.value, coverage.value) == (pytest.approx(plain[0]), pytest.approx(plain[1]))


def test_precision_and_recall_do_not_depend_on_the_blocks(small_blocks, monkeypatch):
    rng = np.random.default_rng(4)
    generated, real = rng.normal(size=(40, 3)) * 1.2, rng.normal(size=(33, 3))
    blocked = precision_recall(generated, real)
    monkeypatch.setattr(neighbours, "BLOCK", 1000)
    assert blocked == precision_recall(generated, real)


def test_density_and_coverage_are_one_for_equal_sources_and_coverage_sees_a_lost_mode():
    rng = np.random.default_rng(5)
    real = rng.normal(size=(600, 4)) + 8 * rng.integers(0, 2, (600, 1))
    whole = rng.normal(size=(600, 4)) + 8 * rng.integers(0, 2, (600, 1))
    density, coverage = density_coverage(whole, real)
    assert density.low <= 1.0 <= density.high + 0.05 and coverage.value > 0.93
    assert density_coverage(rng.normal(size=(600, 4)), real)[1].value == pytest.approx(0.5, abs=0.06)


def _cmmd_by_loops(a, b, unbiased):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))

    def mean(x, y, skip):
        values = [
            np.exp(-((p - q) ** 2).sum() / 200)
            for i, p in enumerate(x)
            for j, q in enumerate(y)
            if not (skip and i == j)
        ]
        return np.mean(values)

    return 1000 * (mean(a, a, unbiased) + mean(b, b, unbiased) - 2 * mean(a, b, False))


@pytest.mark.parametrize("unbiased", [False, True])
def test_cmmd_equals_plain_loops(unbiased):
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(14, 8)), rng.normal(size=(11, 8)) + 0.5
    assert cmmd(a, b, unbiased=unbiased).value == pytest.approx(_cmmd_by_loops(a, b, unbiased), rel=1e-9)


def test_cmmds_deviation_is_the_jackknifes_by_leaving_rows_out():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(12, 5)), rng.normal(size=(9, 5)) + 0.3
    left_a = np.array([cmmd(np.delete(a, i, 0), b).value for i in range(12)])
    left_b = np.array([cmmd(a, np.delete(b, j, 0)).value for j in range(9)])
    variance = 11 / 12 * ((left_a - left_a.mean()) ** 2).sum() + 8 / 9 * ((left_b - left_b.mean()) ** 2).sum()
    found = cmmd(a, b)
    assert found.high - found.low == pytest.approx(2 * stats.norm.ppf(0.975) * variance**0.5, rel=1e-6)


def test_unbiased_cmmd_of_equal_sources_is_zero_on_average():
    rng = np.random.default_rng(8)
    values = [cmmd(rng.normal(size=(40, 6)), rng.normal(size=(40, 6)), unbiased=True).value for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5


def test_copies_of_training_images_are_found_and_fresh_ones_are_not():
    rng = np.random.default_rng(9)
    train, held_out = rng.normal(size=(300, 6)), rng.normal(size=(200, 6))
    copies = memorisation(train[:100] + 1e-3 * rng.normal(size=(100, 6)), train, held_out)
    assert copies.suspicious.value == 1.0 and copies.ratio < 0.01 and copies.p_value < 1e-20
    assert sorted(copies.twins.tolist()) == sorted(copies.worst.tolist())  # copy i lies next to training image i
    fresh = memorisation(rng.normal(size=(200, 6)), train, held_out)
    assert fresh.ratio == pytest.approx(1.0, abs=0.15) and fresh.suspicious.low <= 0.05 <= fresh.suspicious.high


def test_memorisation_cries_wolf_as_often_as_its_level_says():
    rng = np.random.default_rng(10)
    train = rng.normal(size=(100, 4))
    alarms = [
        memorisation(rng.normal(size=(60, 4)), train, rng.normal(size=(60, 4))).p_value < 0.05 for _ in range(400)
    ]
    assert stats.binomtest(sum(alarms), 400, 0.05).pvalue > 0.01


def test_a_few_copies_among_many_are_named():
    rng = np.random.default_rng(11)
    train = rng.normal(size=(200, 6))
    drawn = rng.normal(size=(100, 6))
    drawn[[17, 60]] = train[[5, 9]]
    found = memorisation(drawn, train, rng.normal(size=(100, 6)), kept=2)
    assert set(zip(found.worst.tolist(), found.twins.tolist(), strict=True)) == {(17, 5), (60, 9)}
    with pytest.raises(ValueError, match="at least 20 held-out"):
        memorisation(drawn, train, train[:10])
