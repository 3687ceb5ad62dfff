"""The sanity ladder: which metrics it trusts, what it says of those it does not, and which one decides."""

import pytest

from mlx_tasks.metrics.ladder import DECIDING, HIGHER_IS_BETTER, ORDERS, check_ladder, deciding_metric

SETS = ("real", "held-out", "class-missing", "noisy", "gaussian", "blurred", "noise")


def rows(**metrics):
    """Reference rows; a metric is given as its values over SETS."""
    return [
        {
            "candidate": f"reference-{name}",
            "kind": "reference",
            "metrics": {metric: {"value": values[i]} for metric, values in metrics.items() if values[i] is not None},
        }
        for i, name in enumerate(SETS)
    ] + [{"candidate": "student", "kind": "student", "metrics": {m: {"value": -9.0} for m in metrics}}]


GOOD = (0.02, 0.03, 0.04, 0.05, 0.15, 1.2, 6.0)


def test_what_is_known_to_say_nothing_is_not_trusted_whatever_order_it_gives():
    scores = (40.0, None, None, None, None, None, 5.0)
    assert check_ladder(rows(image_text_score=scores))["image_text_score"]["trusted"]
    judged = check_ladder(
        rows(image_text_score=scores), {"image_text_score": "captions read alike", "clip_score": "no"}
    )
    assert judged == {"image_text_score": {"trusted": False, "broken": ["captions read alike"], "checked": 1}}


def test_a_metric_that_orders_every_pair_is_trusted():
    judged = check_ladder(rows(frechet_distance=GOOD))
    assert judged == {"frechet_distance": {"trusted": True, "broken": [], "checked": 7}}


def test_a_gaussian_that_beats_real_images_is_named():
    judged = check_ladder(rows(frechet_distance=(0.02, 0.03, 0.04, 0.05, 0.01, 1.2, 6.0)))["frechet_distance"]
    assert not judged["trusted"]
    assert judged["broken"] == ["real should score better than gaussian: 0.02 against 0.01"]


def test_equal_scores_are_no_order():
    assert check_ladder(rows(recall=(0.9, 0.9, 0.8, 0.9, 0.9, 0.9, 0.0)))["recall"]["broken"] == [
        "real should score better than blurred: 0.9 against 0.9"
    ]


def test_more_is_better_where_it_is():
    assert check_ladder(rows(precision=(0.9, 0.9, 0.9, 0.8, 0.5, 0.4, 0.0)))["precision"]["trusted"]
    assert not check_ladder(rows(precision=GOOD))["precision"]["trusted"]


def test_sets_that_were_not_scored_are_not_asked_about_and_none_at_all_is_no_trust():
    partly = check_ladder(rows(frechet_distance=(0.02, None, None, None, 0.15, None, 6.0)))["frechet_distance"]
    assert partly == {"trusted": True, "broken": [], "checked": 2}
    lonely = check_ladder(rows(memorisation=(1.0, None, None, None, 0.1, 0.1, 0.0)))["memorisation"]
    assert lonely == {"trusted": False, "broken": [], "checked": 0}


def test_only_memorisation_is_asked_to_tell_training_images_from_held_out_ones():
    assert check_ladder(rows(memorisation=(1.0, 0.05, 1, 1, 0.1, 0.1, 0.0)))["memorisation"]["trusted"]
    assert [name for name, pairs in ORDERS.items() if any("held-out" in pair[0] for pair in pairs)] == ["memorisation"]


def test_the_first_trusted_distance_decides_and_what_was_passed_over_is_said():
    broken = (0.02, 0.03, 0.04, 0.05, 0.01, 1.2, 6.0)
    sanity = check_ladder(rows(frechet_distance=broken, frechet_distance_embedded=GOOD, kernel_distance=GOOD))
    assert deciding_metric(sanity) == ("frechet_distance_embedded", "frechet_distance failed the sanity ladder")
    assert deciding_metric(check_ladder(rows(frechet_distance=GOOD)))[0] == "frechet_distance"
    name, why = deciding_metric(check_ladder(rows(frechet_distance=broken)))
    assert name == "frechet_distance" and "do not trust" in why


@pytest.mark.parametrize("name", DECIDING)
def test_what_decides_is_a_distance_that_the_ladder_knows(name):
    assert name in ORDERS and name not in HIGHER_IS_BETTER
