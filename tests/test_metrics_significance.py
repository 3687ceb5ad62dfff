"""Differences between candidates: how often they cry wolf, and what they see."""

import numpy as np
import pytest
from scipy import stats

from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.significance import (
    at_equal_counts,
    difference,
    difference_of_intervals,
    difference_over_seeds,
)


def _cheap(a, b):
    """A two-sample statistic with the Frechet distance's bias, in one dimension and quick."""
    return float((a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2)


@pytest.mark.parametrize("paired", [True, False])
def test_equal_candidates_are_inside_the_noise_as_often_as_it_says(paired):
    rng = np.random.default_rng(0)
    calls = []
    for run in range(300):
        shared = rng.normal(size=(80, 1)) * 0.7 if paired else 0.0  # candidates drawn from the same noises go together
        a, b = (0.4 + shared + rng.normal(size=(80, 1)) for _ in range(2))
        found = difference(a, b, rng.normal(size=(80, 1)), _cheap, paired=paired, resamples=200, seed=run)
        calls.append(found.verdict == "inside the noise")
    assert np.mean(calls) >= 0.93


@pytest.mark.parametrize("paired", [True, False])
def test_a_real_shift_is_seen(paired):
    rng, seen = np.random.default_rng(1), 0
    for run in range(40):
        shared, real = rng.normal(size=(150, 2)), rng.normal(size=(150, 2))
        a, b = shared + 0.1 * rng.normal(size=(150, 2)), shared + 0.65 + 0.1 * rng.normal(size=(150, 2))
        found = difference(a, b, real, frechet_distance, paired=paired, resamples=60, seed=run)
        seen += found.verdict == "better"
    assert seen >= 37


def test_pairing_narrows_the_interval_of_candidates_that_go_together():
    rng, ratios = np.random.default_rng(2), []
    for run in range(10):
        shared, real = rng.normal(size=(200, 2)), rng.normal(size=(200, 2))
        a, b = (shared + 0.1 * rng.normal(size=(200, 2)) for _ in range(2))
        widths = [
            difference(a, b, real, frechet_distance, paired=paired, resamples=60, seed=run) for paired in (True, False)
        ]
        ratios.append((widths[0].high - widths[0].low) / (widths[1].high - widths[1].low))
    assert np.median(ratios) < 0.5


def test_the_word_follows_the_metrics_direction():
    rng = np.random.default_rng(2)
    good, bad, real = rng.normal(size=(200, 1)), rng.normal(size=(200, 1)) + 2, rng.normal(size=(200, 1))
    assert difference(good, bad, real, _cheap).verdict == "better"
    assert difference(bad, good, real, _cheap).verdict == "worse"
    assert difference(good, bad, real, lambda a, b: -_cheap(a, b), higher_is_better=True).verdict == "better"
    with pytest.raises(ValueError, match="equal counts, got 200 and 5"):
        difference(good, bad[:5], real, _cheap)


def test_seeds_give_students_interval():
    a, b = [1.0, 1.2, 1.1], [0.7, 0.8, 0.9]
    found = difference_over_seeds(a, b)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.value == pytest.approx(0.3) and found.count == 3
    with pytest.raises(ValueError, match="at least 2 seeds"):
        difference_over_seeds([1.0], [2.0])


def test_two_intervals_compare_cautiously():
    assert difference_of_intervals((1.0, 0.9, 1.1), (2.0, 1.8, 2.2)).verdict == "better"
    overlapping = difference_of_intervals((1.0, 0.9, 1.1), (1.2, 1.0, 1.3))
    assert overlapping.verdict == "inside the noise"
    assert overlapping.high - overlapping.value == pytest.approx((0.1**2 + 0.2**2) ** 0.5)


def test_equal_counts_are_a_seeded_choice():
    rows = np.arange(10)[:, None]
    a, b = at_equal_counts(3, rows, rows[:4])
    assert len(a) == len(b) == 4 and np.array_equal(b, rows[:4])
    assert (np.diff(a[:, 0]) > 0).all() and np.array_equal(a, at_equal_counts(3, rows, rows[:4])[0])
