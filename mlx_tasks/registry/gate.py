"""The promotion gate: a pure function of the scores, the rules and the champion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from mlx_tasks.metrics.ladder import HIGHER_IS_BETTER
from mlx_tasks.metrics.significance import difference_of_intervals


class Rule(Protocol):
    """A rule as `config.Limit` has it."""

    @property
    def metric(self) -> str: ...
    @property
    def direction(self) -> Literal["below", "above"]: ...
    @property
    def limit(self) -> float: ...
    @property
    def of(self) -> str | None: ...
    @property
    def optional(self) -> bool: ...


@dataclass(frozen=True)
class Score:
    """A metric's value and interval; each is None where it was not measured or is not finite."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, measured: Any) -> Score:
        """From a number, a mapping with `value` (and `low`, `high`), a Score, or None."""
        if isinstance(measured, Score):
            return cls(_finite(measured.value), _finite(measured.low), _finite(measured.high))
        if isinstance(measured, Mapping):
            return cls(*(_finite(measured.get(key)) for key in ("value", "low", "high")))
        return cls(_finite(measured))


@dataclass(frozen=True)
class Champion:
    """Who holds the title.

    Attributes:
        version: its version in the registry.
        scores: metric -> score under the candidate's conditions, of those that can be had.
        why_not: the reason, where a score cannot be had.
        how: "stored" (scored earlier under equal conditions) or "scored again" (now, under the candidate's).
    """

    version: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    why_not: str = ""
    how: str = "stored"


@dataclass(frozen=True)
class RuleResult:
    """One rule, the value it met, whether it holds, and a note where the value was not what decided.

    limit: in the metric's unit, None where the set that it is a multiple of has no score; of, times: that set, and the
    multiple.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    direction: str
    limit: float | None
    passed: bool
    note: str = ""
    of: str | None = None
    times: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The gate's answer.

    Attributes:
        passed: whether every rule holds.
        reasons: why not, one sentence a rule that does not hold; empty if it passed.
        rules: every rule with its value.
        champion: a comparison with the champion for each metric asked for; empty where there is no champion.
    """

    passed: bool
    reasons: tuple[str, ...]
    rules: tuple[RuleResult, ...]
    champion: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "rules": [asdict(rule) for rule in self.rules],
            "champion": list(self.champion),
        }


def judge(
    metrics: Mapping[str, Any],
    rules: Sequence[Rule],
    champion: Champion | None = None,
    *,
    not_worse: Sequence[str] = ("frechet_distance",),
    sanity: Mapping[str, Mapping[str, Any]] | None = None,
    references: Mapping[str, Mapping[str, Any]] | None = None,
) -> Verdict:
    """Hold a candidate's metrics against the rules and, in the metrics of `not_worse`, against the champion.

    A rule holds where value <= limit ("below") or value >= limit ("above"); the value is the plain estimate, its
    interval is only reported. A metric that is missing or not finite holds no rule. Against the champion a candidate
    fails where it is worse beyond the noise of both (significance.difference_of_intervals, the cautious rule). A
    champion that has no score under the candidate's conditions refuses, too: nobody can say that the candidate is not
    worse. A metric that failed the sanity ladder steers nothing: its rule refuses, or is left out if it is optional.

    Args:
        metrics: name -> a number, or a mapping with value, low and high.
        sanity: scores.json's `sanity`; a metric that it does not name was not put to the ladder and is taken as is.
        references: reference set -> its metrics, for rules whose limit is a multiple of one's score.
    """
    results, reasons, comparisons = [], [], []
    for rule in rules:
        score = Score.of(metrics.get(rule.metric))
        limit, no_limit = _limit(rule, references or {})
        good = (
            score.value is not None
            and limit is not None
            and (score.value <= limit if rule.direction == "below" else score.value >= limit)
        )
        note = _distrust(rule.metric, sanity) or no_limit
        reason = "" if good else _refusal(rule, score, metrics, limit)
        if note and rule.optional:
            good, reason, note = True, "", f"left out: {note}"
        elif note:
            good, reason = False, f"{note}; make the rule optional, or use another metric"
        told = (rule.of, float(rule.limit)) if rule.of else (None, None)
        results.append(
            RuleResult(rule.metric, score.value, score.low, score.high, rule.direction, limit, good, note, *told)
        )
        if reason:
            reasons.append(reason)
    for metric in not_worse if champion is not None else ():
        assert champion is not None
        compared, reason = _compare(metric, Score.of(metrics.get(metric)), champion)
        note = _distrust(metric, sanity)
        if note:
            compared["passed"], reason = False, f"{note}; take it out of gate.not_worse"
        comparisons.append(compared)
        if reason:
            reasons.append(reason)
    return Verdict(not reasons, tuple(reasons), tuple(results), tuple(comparisons))


def _distrust(metric: str, sanity: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Why a metric may not be used here; empty where it may."""
    judged = (sanity or {}).get(metric)
    if judged is None or judged["trusted"]:
        return ""
    broken = "; ".join(judged["broken"]) or "none of the sets it is asked to order was scored"
    return f"{metric} failed the sanity ladder on this dataset ({broken})"


def _limit(rule: Rule, references: Mapping[str, Mapping[str, Any]]) -> tuple[float | None, str]:
    """(the limit in the metric's own unit or None, why there is none)."""
    if rule.of is None:
        return float(rule.limit), ""
    theirs = Score.of(references.get(rule.of, {}).get(rule.metric)).value
    if theirs is None:
        known = ", ".join(sorted(name for name, found in references.items() if rule.metric in found)) or "none"
        return (
            None,
            f"the limit of {rule.metric} is a multiple of {rule.of}'s, which was not scored (there are: {known})",
        )
    if theirs <= 0:
        return None, f"the limit of {rule.metric} is a multiple of {rule.of}'s, which is {theirs:.4g} and not above 0"
    return rule.limit * theirs, ""


def _refusal(rule: Rule, score: Score, metrics: Mapping[str, Any], limit: float | None) -> str:
    if rule.metric not in metrics:
        return f"{rule.metric} was not measured; there are: {', '.join(sorted(metrics)) or 'no metrics'}"
    if score.value is None:
        return f"{rule.metric} has no finite value (got {metrics[rule.metric]!r:.80})"
    side = "at most" if rule.direction == "below" else "at least"
    if limit is None:
        return ""  # the note says why there is none
    if rule.of is None:
        return f"{rule.metric} is {score.value:.6g}, must be {side} {limit:g}"
    whose = (
        f"{rule.limit:g} times what the set {rule.of} scores" if rule.limit != 1 else f"what the set {rule.of} scores"
    )
    plain = ""
    if rule.of == "gaussian" and rule.limit == 1:
        plain = ": worse than a per-class Gaussian"
    return f"{rule.metric} is {score.value:.6g}, must be {side} {limit:.4g}, {whose}{plain}"


def _compare(metric: str, score: Score, champion: Champion) -> tuple[dict[str, Any], str]:
    theirs = champion.scores.get(metric, Score(None))
    compared = {
        "version": champion.version,
        "metric": metric,
        "value": theirs.value,
        "low": theirs.low,
        "high": theirs.high,
        "how": champion.how if theirs.value is not None else None,
        "difference": None,
        "passed": False,
    }
    if theirs.value is None:
        reason = (
            f"{metric} cannot be compared with champion version {champion.version}: "
            f"{champion.why_not or 'it has no such score'}; promote by hand, or take it out of gate.not_worse"
        )
        return compared, reason
    if score.value is None:
        return compared, f"{metric} has no finite value to compare with champion version {champion.version}"
    found = difference_of_intervals(_triple(score), _triple(theirs), higher_is_better=metric in HIGHER_IS_BETTER)
    compared |= {"difference": found.as_dict(), "passed": found.verdict != "worse"}
    if compared["passed"]:
        return compared, ""
    reason = (
        f"{metric} {score.value:.6g} is worse than champion version {champion.version}'s {theirs.value:.6g} beyond the "
        f"noise (difference {found.value:+.4g}, interval {found.low:+.4g} to {found.high:+.4g})"
    )
    return compared, reason


def _triple(score: Score) -> tuple[float, float, float]:
    assert score.value is not None
    return (
        score.value,
        score.value if score.low is None else score.low,
        score.value if score.high is None else score.high,
    )


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or (not isinstance(value, (int, float)) and not hasattr(value, "__float__")):
        return None
    number = float(value)
    return number if math.isfinite(number) else None
