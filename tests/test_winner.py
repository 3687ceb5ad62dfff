"""Facts about the winner: the best beyond the noise, by the metrics that kept their ladder, then the fastest."""

import pytest

from mlx_tasks.metrics.winner import choose_winner


def _scored(name, kind, distance, high, latency, refused=""):
    metrics = {"frechet_distance": {"value": distance, "low": 0.0, "high": high}}
    return {"candidate": name, "kind": kind, "refused": refused, "latency_ms": latency, "metrics": metrics}


def test_the_winner_is_the_fastest_within_the_bests_interval():
    rows = [
        _scored("reference-real", "reference", 0.01, 0.02, None),
        _scored("best", "teacher", 0.05, 0.07, 90.0),
        _scored("close", "student", 0.07, 0.09, 9.0),
        _scored("closer", "searched", 0.06, 0.08, 9.0),
        _scored("fast", "student", 0.0701, 0.09, 1.0),
        _scored("refused", "student", 0.05, 0.07, 0.5, "no"),
    ]
    found = choose_winner(rows)
    assert (found["candidate"], found["best"], found["bound"]) == ("closer", "best", 0.07)
    assert found["eligible"] == ["best", "close", "closer"]
    with pytest.raises(ValueError, match="no candidate may win"):
        choose_winner(rows[:1] + rows[5:])


def test_latency_does_not_decide_where_another_trusted_metric_tells_the_candidate_from_the_best():
    rows = [
        _scored("best", "student", 0.05, 0.07, 20.0),
        _scored("equal", "student", 0.06, 0.08, 9.0),
        _scored("coarse", "searched", 0.06, 0.08, 5.0),
        _scored("unsure", "searched", 0.06, 0.08, 7.0),
    ]
    precision = {"best": (0.8, 0.04), "equal": (0.78, 0.04), "coarse": (0.4, 0.04), "unsure": (0.6, 0.3)}
    for row in rows:
        value, arm = precision[row["candidate"]]
        row["metrics"]["precision"] = {"value": value, "low": value - arm, "high": value + arm}
        row["metrics"]["c2st_p_value"] = {"value": 0.1, "low": None, "high": None}
    judged = {name: {"trusted": True} for name in ("frechet_distance", "precision", "c2st_p_value", "recall")}
    found = choose_winner(rows, sanity=judged)
    assert found["candidate"] == "unsure" and found["set_aside"] == {"coarse": ["precision"]}
    assert found["eligible"] == ["best", "equal", "unsure"]
    judged["precision"]["trusted"] = False
    assert choose_winner(rows, sanity=judged)["candidate"] == "coarse"


def test_the_metric_that_decides_is_named_and_another_one_can():
    rows = [_scored("a", "student", 0.2, 0.3, 1.0), _scored("b", "student", 0.1, 0.15, 2.0)]
    for row, value in zip(rows, (0.5, 0.9), strict=True):
        row["metrics"]["kernel_distance"] = {"value": value, "low": value, "high": value}
    assert choose_winner(rows)["candidate"] == "b"
    found = choose_winner(rows, "kernel_distance")
    assert (found["candidate"], found["metric"]) == ("a", "kernel_distance") and "kernel distance" in found["rule"]
