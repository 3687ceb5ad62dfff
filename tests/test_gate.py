"""Facts about the gate: which scores pass, and what it says of those that do not."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_tasks.config import Gate, Limit
from mlx_tasks.params import load_config
from mlx_tasks.registry.gate import Champion, Score, judge

BELOW = Limit(metric="frechet_distance", direction="below", limit=0.15)
ABOVE = Limit(metric="recall", direction="above", limit=0.3)


def fd(value, low=None, high=None):
    return {"frechet_distance": {"value": value, "low": low, "high": high}, "recall": 0.9, "latency_ms": 3.0}


LADDER = {"gaussian": {"frechet_distance": {"value": 0.15}}, "real": {"recall": 0.9}}


def test_the_default_rules_pass_good_scores():
    verdict = judge(fd(0.06, 0.05, 0.07), Gate().limits, references=LADDER)
    assert verdict.passed and verdict.reasons == () and verdict.champion == ()
    assert [rule.metric for rule in verdict.rules] == ["frechet_distance", "recall"]
    assert (verdict.rules[0].value, verdict.rules[0].low, verdict.rules[0].high) == (0.06, 0.05, 0.07)


def test_the_default_limits_are_the_datasets_own():
    """Scores of another scale: nothing of digits is in the rules."""
    photos = {"gaussian": {"frechet_distance": 3.0}, "real": {"recall": 0.4}}
    verdict = judge({"frechet_distance": 2.9, "recall": 0.15}, Gate().limits, references=photos)
    assert verdict.passed and [rule.limit for rule in verdict.rules] == [3.0, pytest.approx(0.14)]
    refused = judge({"frechet_distance": 3.1, "recall": 0.13}, Gate().limits, references=photos)
    assert refused.reasons == (
        "frechet_distance is 3.1, must be at most 3, what the set gaussian scores: worse than a per-class Gaussian",
        "recall is 0.13, must be at least 0.14, 0.35 times what the set real scores",
    )


def test_the_demos_stored_result_passes_the_default_gate(repository):
    told = json.loads((repository / "benchmarks" / "results" / "demo_results.json").read_text())
    rows = {row["candidate"]: row["metrics"] for row in told["rows"]}
    references = {name.removeprefix("reference-"): found for name, found in rows.items() if "reference" in name}
    limits = load_config(repository, "demo").gate.limits
    assert limits == Gate().limits
    assert judge(rows[told["config"]["winner"]["candidate"]], limits, references=references).passed
    assert not judge(rows["searched-uniform-nfe4"], limits, references=references).passed


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ({}, "which was not scored (there are: none)"),
        ({"real": {"frechet_distance": 0.1}}, "which was not scored (there are: real)"),
        ({"gaussian": {"frechet_distance": float("nan")}}, "which was not scored"),
        ({"gaussian": {"frechet_distance": -0.001}}, "which is -0.001 and not above 0"),
    ],
)
def test_a_multiple_of_what_was_not_scored_refuses_unless_it_is_optional(references, words):
    rule = {"metric": "frechet_distance", "direction": "below", "limit": 1.0, "of": "gaussian"}
    refused = judge(fd(0.01), [Limit(**rule)], references=references)
    assert not refused.passed and words in refused.reasons[0] and refused.rules[0].limit is None
    json.dumps(refused.to_dict(), allow_nan=False)
    assert judge(fd(0.01), [Limit(**rule, optional=True)], references=references).passed


def test_a_set_that_there_is_not_is_refused_with_the_names():
    with pytest.raises(ValueError, match="gaussian"):
        Limit(metric="recall", direction="above", limit=0.3, of="gausian")


@pytest.mark.parametrize(
    ("rule", "value", "passed"),
    [
        (BELOW, 0.15, True),
        (BELOW, math.nextafter(0.15, 1), False),
        (BELOW, -1.0, True),
        (ABOVE, 0.3, True),
        (ABOVE, math.nextafter(0.3, 0), False),
        (ABOVE, 1, True),
        (ABOVE, np.float32(0.5), True),
    ],
)
def test_a_value_on_the_limit_passes_and_the_next_float_beyond_it_does_not(rule, value, passed):
    assert judge({rule.metric: value}, [rule]).passed is passed


def test_every_broken_rule_gives_its_reason_with_value_and_limit():
    slow = Limit(metric="latency_ms", direction="below", limit=2000.0)
    verdict = judge({"frechet_distance": 0.2, "recall": 0.1, "latency_ms": 5}, [BELOW, ABOVE, slow])
    assert verdict.reasons == ("frechet_distance is 0.2, must be at most 0.15", "recall is 0.1, must be at least 0.3")
    assert [rule.passed for rule in verdict.rules] == [False, False, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None, "0.1", True, {"low": 0.1}, {}])
def test_what_is_not_a_finite_number_is_refused(value):
    verdict = judge({"frechet_distance": value}, [BELOW])
    assert not verdict.passed and "no finite value" in verdict.reasons[0]
    assert verdict.rules[0].value is None
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_metric_nobody_measured_is_refused_and_the_measured_ones_are_listed():
    verdict = judge({"kid": 0.1, "clip": 0.2}, [BELOW])
    assert verdict.reasons == ("frechet_distance was not measured; there are: clip, kid",)


def test_no_rules_and_no_champion_pass():
    assert judge({}, []).passed


@pytest.mark.parametrize(
    ("value", "passed"), [(0.05, True), (0.06, True), (0.07, True), (math.nextafter(0.07, 1), False), (0.2, False)]
)
def test_worse_than_the_champion_means_beyond_its_interval(value, passed):
    champion = Champion("3", {"frechet_distance": Score(0.06, 0.05, 0.07)})
    verdict = judge(fd(value), [], champion)
    assert verdict.passed is passed and verdict.champion[0]["passed"] is passed
    assert verdict.champion[0]["version"] == "3" and verdict.champion[0]["value"] == 0.06
    if not passed:
        assert "worse than champion version 3's 0.06" in verdict.reasons[0]


def test_a_champion_without_an_interval_is_compared_by_its_value():
    assert judge(fd(0.06), [], Champion("3", {"frechet_distance": Score(0.06)})).passed
    assert not judge(fd(0.0601), [], Champion("3", {"frechet_distance": Score(0.06)})).passed


def test_a_champion_that_cannot_be_compared_refuses_and_says_how_to_go_on():
    verdict = judge(fd(0.01), [BELOW], Champion("3", why_not="it was scored on another dataset"))
    assert not verdict.passed
    assert "version 3: it was scored on another dataset" in verdict.reasons[0]
    assert "gate.not_worse" in verdict.reasons[0]
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_champions_nan_refuses_like_no_score():
    assert not judge(fd(0.01), [], Champion("3", {"frechet_distance": Score.of(float("nan"))})).passed


def test_a_candidate_without_a_frechet_distance_cannot_beat_a_champion():
    verdict = judge({"recall": 0.9}, [], Champion("3", {"frechet_distance": Score(0.06, 0.05, 0.07)}))
    assert not verdict.passed and "no finite value to compare" in verdict.reasons[0]


def test_the_champion_is_left_out_when_no_comparison_is_asked_for():
    verdict = judge(fd(9.0), [], Champion("3", {"frechet_distance": Score(0.06)}), not_worse=())
    assert verdict.passed and verdict.champion == ()


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.one_of(st.none(), st.floats(), st.fixed_dictionaries({"value": st.floats(), "high": st.floats()})),
    ),
    st.lists(
        st.builds(
            Limit,
            metric=st.sampled_from(["a", "b", "c"]),
            direction=st.sampled_from(["below", "above"]),
            limit=st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=4,
    ),
)
def test_whatever_comes_it_passes_exactly_when_every_rule_does_and_its_verdict_is_json(metrics, rules):
    verdict = judge(metrics, rules)
    assert verdict.passed == all(rule.passed for rule in verdict.rules) == (not verdict.reasons)
    assert len(verdict.reasons) == sum(not rule.passed for rule in verdict.rules)
    for rule in verdict.rules:
        if rule.passed:
            assert rule.value <= rule.limit if rule.direction == "below" else rule.value >= rule.limit
    json.dumps(verdict.to_dict(), allow_nan=False)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_better_value_never_turns_a_pass_into_a_refusal(value, gain):
    rules = [BELOW]
    if judge({"frechet_distance": value}, rules).passed:
        assert judge({"frechet_distance": value - gain}, rules).passed


DISTRUSTED = {"frechet_distance": {"trusted": False, "broken": ["real should score better than gaussian: 2 against 1"]}}


def test_a_metric_that_failed_the_sanity_ladder_steers_nothing():
    refused = judge(fd(0.01), [BELOW], sanity=DISTRUSTED)
    assert not refused.passed and "failed the sanity ladder" in refused.reasons[0]
    assert "real should score better than gaussian" in refused.reasons[0]
    champion = Champion("3", {"frechet_distance": Score(0.5)})
    compared = judge(fd(0.01), [], champion, sanity=DISTRUSTED)
    assert not compared.passed and "take it out of gate.not_worse" in compared.reasons[0]
    assert judge(fd(0.01), [BELOW], champion, sanity={"frechet_distance": {"trusted": True, "broken": []}}).passed


def test_an_optional_rule_is_left_out_where_its_metric_is_not_trusted_and_holds_where_it_is():
    optional = Limit(metric="frechet_distance", direction="below", limit=0.15, optional=True)
    left_out = judge(fd(0.9), [optional], sanity=DISTRUSTED)
    assert left_out.passed and left_out.rules[0].note.startswith("left out: frechet_distance failed")
    assert not judge(fd(0.9), [optional]).passed


def test_not_worse_may_name_any_metric_in_its_own_direction():
    scores = {"recall": {"value": 0.6, "low": 0.55, "high": 0.65}, "kernel_distance": 0.01}
    champion = Champion("3", {"recall": Score(0.8, 0.75, 0.85), "kernel_distance": Score(0.2, 0.1, 0.3)})
    verdict = judge(scores, [], champion, not_worse=("recall", "kernel_distance"))
    assert [one["passed"] for one in verdict.champion] == [False, True]
    assert verdict.champion[0]["difference"]["verdict"] == "worse"
    assert verdict.reasons[0].startswith("recall 0.6 is worse than champion version 3's 0.8 beyond the noise")
    close = judge(scores | {"recall": {"value": 0.74, "low": 0.68, "high": 0.8}}, [], champion, not_worse=("recall",))
    assert close.passed and close.champion[0]["difference"]["verdict"] == "inside the noise"


def test_a_score_that_the_champion_lacks_refuses_by_name():
    verdict = judge({"fid": 3.0}, [], Champion("3", {"frechet_distance": Score(0.1)}), not_worse=("fid",))
    assert verdict.reasons[0].startswith("fid cannot be compared with champion version 3: it has no such score")
