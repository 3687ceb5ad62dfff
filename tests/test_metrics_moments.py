"""Streaming statistics: against numpy over all rows at once, and what they refuse."""

import json

import numpy as np
import pytest

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.moments import Moments

IDENTITY = {"name": "random_conv", "seed": 0, "side": 16}


def moments(*batches, identity=IDENTITY):
    found = Moments(identity)
    for batch in batches:
        found.update(batch)
    return found


def test_batches_give_what_numpy_gives_for_all_rows_also_far_from_zero():
    rng = np.random.default_rng(0)
    rows = 1e6 + rng.normal(size=(500, 7)) @ rng.normal(size=(7, 7))
    found = moments(rows[:1], rows[1:130], rows[130:130], rows[130:])
    assert found.count == 500
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T), rtol=1e-9, atol=1e-9)


def test_merged_workers_equal_one_worker_in_any_order():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(90, 5)) + 3
    a, b, c = moments(rows[:20]), moments(rows[20:21]), moments(rows[21:])
    for merged in (a.merge(b).merge(c), c.merge(a.merge(b)), moments().merge(a).merge(c).merge(b)):
        assert merged.count == 90
        np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, np.cov(rows.T), rtol=1e-10)
    assert a.count == 20  # merging leaves its parts as they were


def test_the_distance_of_moments_is_that_of_the_rows():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(60, 12)), rng.normal(size=(70, 12)) * 1.3 + 0.2
    assert moments(a[:25], a[25:]).frechet_distance(moments(b)) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_saved_and_loaded_they_go_on_as_if_never_saved(tmp_path):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(40, 4))
    first = moments(rows[:15])
    first.save(tmp_path / "kept")
    again = Moments.load(tmp_path / "kept")
    again.update(rows[15:])
    whole = moments(rows[:15], rows[15:])
    assert (again.identity, again.count, again.data) == (IDENTITY, 40, whole.data)
    assert np.array_equal(again.scatter, whole.scatter) and np.array_equal(again.mean, whole.mean)


def test_features_of_another_extractor_refuse_to_meet_and_the_difference_is_named(tmp_path):
    rows = np.random.default_rng(4).normal(size=(10, 3))
    other = moments(rows, identity=IDENTITY | {"side": 32, "filter": "bicubic"})
    for meet in (moments(rows).merge, moments(rows).frechet_distance):
        with pytest.raises(DataError, match=r"filter: None and 'bicubic'; side: 16 and 32"):
            meet(other)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "moments.json").unlink(), "moments.json"),
        (lambda folder: (folder / "moments.safetensors").write_bytes(b"no"), "no saved statistics"),
        (lambda folder: _change(folder / "moments.json", dimension=9), "dimension 9"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, spoil, said):
    moments(np.eye(4)).save(tmp_path / "kept")
    spoil(tmp_path / "kept")
    with pytest.raises(DataError, match=said):
        Moments.load(tmp_path / "kept")


def _change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_rows_that_are_no_features_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        moments(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match=r"\(N, 3\), got \(2, 4\)"):
        moments(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        _ = moments(np.ones((1, 3))).covariance
