"""Facts about the exchange tests: their statistics are the textbooks', and each keeps the level it states."""

import itertools

import numpy as np
import pytest
from scipy.stats import ks_2samp

from mlx_tasks.metrics.density_coverage import density_coverage
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.precision_recall import precision_recall
from mlx_tasks.monitoring import exchange


def sets(seed, n=40, m=30, d=4, shift=0.0):
    generator = np.random.default_rng(seed)
    return (
        generator.gamma(2.0, size=(n, d)) + shift,
        generator.gamma(2.0, size=(m, d)),
        generator.gamma(2.0, size=(60, d)),
    )


def observed(statistic, a, b, *more):
    return statistic(exchange.deal(len(a), len(b), 19, 0), np.concatenate([a, b]), *more)[0]


def test_mmd2_is_the_unbiased_one_of_its_formula():
    a, b, _ = sets(0, 7, 5, 3)
    rows = np.concatenate([a, b])
    h2 = np.median([((x - y) ** 2).sum() for x, y in itertools.combinations(rows, 2)]) / 2

    def k(x, y):
        return np.exp(-((x - y) ** 2).sum() / (2 * h2))

    within_a = sum(k(a[i], a[j]) for i in range(7) for j in range(7) if i != j) / 42
    within_b = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    expected = within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / 35
    found = exchange.mmd2(exchange.deal(7, 5, 19, 0), exchange.gaussian_kernel(rows))[0]
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_other_statistics_are_the_metrics_own():
    a, b, real = sets(1)
    assert observed(exchange.frechet_rise, a, b, real) == pytest.approx(
        frechet_distance(a, real) - frechet_distance(b, real), rel=1e-6
    )
    (precise_a, _), (precise_b, _) = precision_recall(a, real), precision_recall(b, real)
    assert observed(exchange.fidelity_loss, a, b, real) == pytest.approx(precise_b.value - precise_a.value)
    (_, cover_a), (_, cover_b) = (density_coverage(x, real, neighbours=exchange.NEIGHBOURS) for x in (a, b))
    assert observed(exchange.coverage_loss, a, b, real) == pytest.approx(cover_b.value - cover_a.value)
    for x, y in ((a[:, 0], b[:, 0]), (np.round(a[:, 0]), np.round(b[:, 0]))):  # with ties and without
        found = exchange.kolmogorov_smirnov(exchange.deal(len(x), len(y), 19, 0), np.concatenate([x, y]))[0]
        assert found == pytest.approx(ks_2samp(x, y).statistic)


def test_the_p_value_is_that_of_all_exchanges():
    generator = np.random.default_rng(2)
    values = np.concatenate([generator.normal(size=5), generator.normal(0.8, 1, size=4)])
    larger = []
    for chosen in itertools.combinations(range(9), 5):
        rest = [i for i in range(9) if i not in chosen]
        larger.append(
            ks_2samp(values[list(chosen)], values[rest]).statistic >= ks_2samp(values[:5], values[5:]).statistic - 1e-12
        )
    dealt = exchange.deal(5, 4, 20_000, 0)
    exact = np.mean(larger)
    assert 0.02 < exact < 0.9
    assert dealt.p_value(exchange.kolmogorov_smirnov(dealt, values)) == pytest.approx(
        exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000)
    )


STATISTICS = {
    "drift": lambda dealt, rows, real: exchange.mmd2(dealt, exchange.gaussian_kernel(rows)),
    "quality": exchange.frechet_rise,
    "fidelity": exchange.fidelity_loss,
    "coverage": exchange.coverage_loss,
    "scalar": lambda dealt, rows, real: exchange.kolmogorov_smirnov(dealt, rows[:, 0]),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_false_alarms_come_no_more_often_than_the_level_says(name):
    """Skewed rows, unequal counts: nothing here is Gaussian or large."""
    trials, level, alarms = 400, 0.1, 0
    for trial in range(trials):
        a, b, real = sets(1000 + trial, 30, 20, 3)
        dealt = exchange.deal(30, 20, 99, trial)
        alarms += dealt.p_value(STATISTICS[name](dealt, np.concatenate([a, b]), real)) <= level
    spread = np.sqrt(level * (1 - level) / trials)
    assert alarms / trials < level + 4 * spread
    if name in ("drift", "quality"):  # without ties the level is met, not only kept
        assert alarms / trials > level - 4 * spread


def test_each_statistic_sees_what_it_is_for():
    generator = np.random.default_rng(5)
    real, good = generator.normal(size=(200, 6)), generator.normal(size=(120, 6))
    dealt = exchange.deal(120, 120, 499, 0)

    def p(name, bad):
        return dealt.p_value(STATISTICS[name](dealt, np.concatenate([bad, good]), real))

    shifted, narrow, wide = (generator.normal(m, s, (120, 6)) for m, s in ((0.5, 1), (0, 0.4), (0, 1.6)))
    assert p("drift", shifted) <= 0.01 and p("scalar", shifted) <= 0.01
    assert p("quality", shifted) <= 0.01 and p("quality", wide) <= 0.01
    assert p("coverage", narrow) <= 0.01 and p("fidelity", narrow) > 0.5
    assert p("fidelity", wide) <= 0.01
    assert min(p(name, generator.normal(size=(120, 6))) for name in STATISTICS) > 0.002


def test_a_class_that_is_drawn_as_another_is_seen_although_the_mix_is_the_same():
    generator = np.random.default_rng(6)
    classes = np.repeat([0, 1], 40)
    good, same = (generator.normal(classes[:, None] * 3.0, 1, (80, 4)) for _ in range(2))
    swapped = good[::-1]
    dealt = exchange.deal(80, 80, 499, 0, (classes, classes))

    def p(rows, split):
        pooled = np.concatenate([rows, same])
        kernel = exchange.gaussian_kernel(pooled)
        of_class = exchange.of_one_class(kernel, np.concatenate([classes, classes]))
        return dealt.p_value(exchange.mmd2(dealt, of_class if split else kernel))

    assert p(swapped, True) <= 0.01 < p(swapped, False)
    assert p(good, True) > 0.01


def test_exchanges_within_a_class_ignore_the_mix_and_see_the_rest():
    generator = np.random.default_rng(7)

    def rows(counts, shift=0.0):
        labels = np.repeat([0, 1], counts)
        return generator.normal(labels[:, None] * 6 + shift, 1, (sum(counts), 4)), labels

    def p(a, b, strata=None):
        dealt = exchange.deal(len(a), len(b), 99, 3, strata)
        return dealt.p_value(exchange.mmd2(dealt, exchange.gaussian_kernel(np.concatenate([a, b]))))

    alarms = {"mixed": 0, "within": 0, "shifted": 0}
    for _ in range(60):
        (a, of_a), (b, of_b) = rows((40, 10)), rows((10, 40))
        alarms["mixed"] += p(a, b) <= 0.05
        alarms["within"] += p(a, b, (of_a, of_b)) <= 0.05
        alarms["shifted"] += p(a, rows((10, 40), 1.0)[0], (of_a, of_b)) <= 0.05
    assert alarms["mixed"] == 60 and alarms["within"] <= 9 and alarms["shifted"] >= 55


def test_equal_sets_and_constant_rows_are_no_drift():
    rows = np.random.default_rng(0).normal(size=(20, 3))
    dealt = exchange.deal(20, 20, 99, 0)
    kernel = exchange.gaussian_kernel(np.concatenate([rows, rows]))
    assert dealt.p_value(exchange.mmd2(dealt, kernel)) > 0.5
    ones = exchange.gaussian_kernel(np.ones((40, 2)))
    assert dealt.p_value(exchange.mmd2(dealt, ones)) == 1.0


def test_the_stability_index_is_zero_for_equal_shares_and_its_sum_otherwise():
    then = np.arange(1000.0)
    assert exchange.stability_index(then, then) == 0.0
    now = np.concatenate([np.arange(500.0), np.arange(500.0)])  # the lower half twice
    p, q = np.array([200.5] * 5 + [0.5] * 5), np.full(10, 100.5)
    p, q = p / p.sum(), q / q.sum()
    assert exchange.stability_index(now, then) == pytest.approx(((p - q) * np.log(p / q)).sum())


def test_holm_rejects_in_order_until_one_stands():
    assert exchange.holm({"a": 0.004, "b": 0.012, "c": 0.03, "d": 0.9}, 0.05) == {"a", "b"}
    assert exchange.holm({"a": 0.02, "b": 0.02}, 0.05) == {"a", "b"}
    assert exchange.holm({"a": 0.03, "b": 0.02}, 0.03) == set()
    assert exchange.holm({}, 0.05) == set()
